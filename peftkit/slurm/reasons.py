"""Why a job waits, in words and with the way out; and which reasons no waiting will end."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from peftkit.slurm.states import Job

Ends = Literal["alone", "by someone", "never"]
"""Whether the reason passes by itself, when a person does something, or not at all for this job as it was asked for."""


@dataclass(frozen=True)
class Why:
    """A reason in words."""

    reason: str
    """SLURM's own word, without what follows it."""
    text: str
    way_out: str = ""
    ends: Ends = "alone"

    @property
    def is_hopeless(self) -> bool:
        """Whether the job, as it was asked for, will never start."""
        return self.ends == "never"

    def __str__(self) -> str:
        return f"{self.text}: {self.way_out}" if self.way_out else self.text


def why(job: Job, now: float | None = None) -> Why:
    """Why the job waits. A reason that is not known here is told as SLURM tells it."""
    word, _, detail = job.reason.partition(",")
    word = word.replace(" ", "").replace("_", "").strip("()")
    if word == "BeginTime":
        return _begins(job, time.time() if now is None else now)
    if word.startswith("Dependency"):
        return _depends(job)
    if word == "ReqNodeNotAvail":
        return _nodes_away(detail)
    told = KNOWN.get(word) or _limit(word) or Why(word, f"SLURM says {job.reason}" if word else "not looked at yet")
    return replace(told, way_out=told.way_out.replace("{job}", job.id))


def never_starts(job: Job, several: bool = False) -> Why | None:
    """The reason for which the job will never start as it was asked for, if there is one: look soon after the submission.

    Of a job for `several` partitions SLURM names what is in the way in one of them; another one may still take it.
    """
    if job.phase == "ended" and job.reason == "BadConstraints":
        return KNOWN["BadConstraints"]
    told = why(job) if job.phase == "waiting" else None
    hopeless = told and told.is_hopeless and not (several and told.reason in OF_ONE_PARTITION)
    return told if hopeless else None


OF_ONE_PARTITION = ("PartitionTimeLimit", "PartitionNodeLimit", "PartitionConfig", "QOSNotAllowed", "AccountNotAllowed")


def parents(dependency: str, failed: bool = False) -> list[str]:
    """`afterok:12(failed),afterok:13_*(unfulfilled)` -> the jobs that are waited for, or of them those that failed."""
    found = re.findall(r"(\d+(?:_\d+)?)(?:_\*)?(?:\+\d+)?(?:\((\w+)\))?", dependency)
    return [job for job, state in found if not failed or state == "failed"]


def _begins(job: Job, now: float) -> Why:
    wait = span((job.starts or now) - now)
    sooner = f"scontrol update jobid={job.id} starttime=now"
    if not job.restarts:
        return Why("BeginTime", f"it was asked to begin later, in {wait}", f"at once with {sooner}")
    # A node may not be given two of a job's credentials: `cred_expire`, 120 s where nobody set it.
    put_back = f"it was put back into the queue, and SLURM waits until its old credential has run out, {wait} more"
    return Why("BeginTime", put_back, f"it begins by itself; sooner with {sooner}")


def _depends(job: Job) -> Why:
    # The scheduler's word may be behind the dependency's own state by a round.
    failed = parents(job.dependency, failed=True)
    if failed or job.reason == "DependencyNeverSatisfied":
        of = f"job {', '.join(failed)}" if failed else "the job before it"
        way_out = "cancel it; submit it again when that one has succeeded"
        return Why("DependencyNeverSatisfied", f"it needs {of}, which did not succeed", way_out, "never")
    of = ", ".join(parents(job.dependency))
    return Why("Dependency", f"it begins when job {of} has succeeded" if of else "it begins after the jobs before it")


def _nodes_away(detail: str) -> Why:
    nodes = detail.partition(":")[2].strip(" ()")
    away = "nodes that it needs are down, drained or reserved" + (f" ({nodes})" if nodes else "")
    # Maintenance ends and nodes come back, but not by waiting for other jobs: a person should know.
    way_out = "ask for other nodes (--slurm.nodelist, --slurm.exclude), a shorter --time before a maintenance, or wait for them"
    return Why("ReqNodeNotAvail", away, way_out, "by someone")


KNOWN: Mapping[str, Why] = {
    one.reason: one
    for one in (
        Why("Resources", "it is next; the nodes that it needs are busy"),
        Why("Priority", "other jobs come before it", "fewer nodes or a shorter --time start sooner, in gaps"),
        Why("JobArrayTaskLimit", "as many tasks of its array run as may run at once",
            "scontrol update jobid={job} arraytaskthrottle=N lets N run"),
        Why("NodesrequiredforjobareDOWN", "nodes that it needs are down, drained or kept for jobs before it",
            "sinfo -R shows which are down; fewer --nodes start sooner"),
        Why("Cleaning", "its last attempt is being cleared away"),
        Why("Prolog", "its nodes are being prepared"),
        Why("Reservation", "its reservation has not begun"),
        Why("Licenses", "licences that it asks for are in use"),
        Why("NodeDown", "a node that it needs is down", "--slurm.exclude leaves it out", "by someone"),
        Why("PartitionDown", "the partition starts nothing now", "another --partition, or wait until it is back", "by someone"),
        Why("PartitionInactive", "the partition takes no jobs", "another --partition", "by someone"),
        Why("QOSUsageThreshold", "the account has used up its share under this quality of service", "another --qos", "by someone"),
        Why("JobHeldUser", "it is held", "scontrol release {job}", "by someone"),
        Why("JobHeldAdmin", "an administrator holds it, or it failed to start on a node",
            "ask them; scontrol show job {job} may say more", "by someone"),
        Why("JobHoldMaxRequeue", "it was put back into the queue too often and is held",
            "peftkit logs {job} says why; then scontrol release {job}", "by someone"),
        Why("launchfailedrequeuedheld", "it failed to start on a node and is held", "scontrol release {job}", "by someone"),
        Why("PartitionNodeLimit", "it asks for more nodes than the partition has or allows",
            "fewer --nodes, or another --partition", "never"),
        Why("PartitionConfig", "it asks for more nodes, more time, or more of a node than the partition allows",
            "fewer --nodes, a shorter --time, less on a node, or another --partition", "never"),
        Why("PartitionTimeLimit", "it asks for more time than the partition allows",
            "a shorter --time (a run goes on from its checkpoint when the time is over), or another --partition", "never"),
        Why("BadConstraints", "no node has what it asks for",
            "ask for less on a node, or for other features; sinfo -o '%N %c %m %G %f' shows the nodes", "never"),
        Why("MaxMemPerLimit", "it asks for more memory than a job may have", "a smaller --slurm.mem", "never"),
        Why("AccountNotAllowed", "the partition does not take this account", "another --account or --partition", "never"),
        Why("InvalidAccount", "the account is not valid", "another --account: sacctmgr show associations user=$USER", "never"),
        Why("InvalidQOS", "the quality of service is not valid",
            "another --qos: sacctmgr show associations user=$USER", "never"),
        Why("QOSNotAllowed", "the partition or account does not take this quality of service", "another --qos", "never"),
        Why("DeadLine", "its deadline cannot be met", "submit it again with a later one", "never"),
        Why("ReservationDeleted", "its reservation is gone", "submit it again without it", "never"),
    )
}  # fmt: skip

WHAT = {
    "CPURunMinutes": "CPU minutes that running jobs may still use", "CPUMinutes": "CPU minutes", "CpuMinutes": "CPU minutes",
    "RunMinutes": "minutes that running jobs may still use", "Minutes": "minutes of use", "Billing": "billing units",
    "SubmitJob": "submitted jobs", "Submit": "submitted jobs", "Jobs": "running jobs", "Cpu": "CPUs", "CPU": "CPUs",
    "GRES": "GPUs", "Memory": "memory", "Mem": "memory", "Node": "nodes", "Wall": "time", "License": "licences",
}  # fmt: skip
LIMIT = re.compile(
    r"(?P<whose>QOS|Assoc)?(?P<scope>Grp|Max|Min)(?P<of>\w+?)(?P<each>Per(?:Job|Node|User|Account))?(?:Limit|NotSatisfied)?$"
)


def _limit(word: str) -> Why | None:
    """A limit of the account or the quality of service: `QOSMaxNodePerUserLimit`, `AssocGrpGRES`, ..."""
    found = LIMIT.match(word)
    if not found:
        return None
    whose = "the account's" if found["whose"] == "Assoc" else "the quality of service's"
    of, scope, each = found["of"], found["scope"], found["each"] or ""
    what = next((text for sign, text in WHAT.items() if sign in of), of)
    if scope == "Min":
        text = f"what it asks for is below {whose} minimum ({what})"
        return Why(word, text, "ask for more, or another --qos", "never")
    # What one job may have does not grow while it waits; what is used up does not come back; what others hold does.
    if each in ("PerJob", "PerNode"):
        ways = "ask for less, or another --qos or --partition"
        return Why(word, f"it asks for more {what} than {whose} limit for one job", ways, "never")
    if scope == "Grp" and ("Wall" in of or ("Minutes" in of and "RunMinutes" not in of)):
        return Why(word, f"{whose} budget of {what} is used up", "another --account or --qos", "by someone")
    ways = "it begins when other jobs under that limit end"
    return Why(word, f"as much is in use as {whose} limit allows ({what})", ways)


def span(seconds: float) -> str:
    """`2 h 5 min`, `45 s`: as much as one wants to know of a wait."""
    whole = max(0, round(seconds))
    if whole < 120:
        return f"{whole} s"
    minutes, hours = whole // 60 % 60, whole // 3600
    if hours >= 48:
        return f"{hours // 24} d {hours % 24} h"
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"
