"""Races: peftkit and what one would use instead, on the same rows, model and settings, in turns.

python tests/bench/race.py W1                                   peftkit against the Trainer at micro-batch 1
python tests/bench/race.py W1 --precision bf16 --turns 3 --rows 64 --runners peftkit,trainer,trainer-mb1,trainer-medium
python tests/bench/race.py W1 --set batch.micro=2 --set speed=plain      settings of peftkit's own
python tests/bench/race.py W1 --runners peftkit,peftkit-plain,peftkit@/work/main
python tests/bench/race.py all --turns 3                        every race, written to tests/bench/RESULTS.md

A runner's work in steady state is all after its first optimizer step: useful (not padding) tokens for each second of CPU
of its process tree between the line that it writes after the first step and the one after its last. Peak memory is
the tree's until the last step. A runner is ended then; with --whole it goes on to its own end (peftkit saves, exports and
verifies), which is counted in `CPU s, all` alone. The first step's loss must be the same (same tokens, mask and weights).
"""

from __future__ import annotations

import argparse
import fcntl
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from tests.bench.measure import spread  # noqa: E402
from tests.bench.runners import RUNNERS, Asked, Command, command  # noqa: E402
from tests.bench.tree import Watched, watch  # noqa: E402
from tests.bench.workloads import CACHE, WORKLOADS, Place, Workload, json_lines, place  # noqa: E402

ALIKE = 1e-3
"""First losses of the same work differ by less: 3e-4 is what bf16 makes of them, in the one library or the other."""


@dataclass(frozen=True)
class Result:
    """One run of one runner."""

    tokens: int
    """Useful tokens in steady state."""
    targets: int
    watched: Watched
    losses: tuple[float, ...]

    @property
    def speed(self) -> float:
        """Useful tokens for each CPU second."""
        return self.tokens / self.watched.steady

    @property
    def learnt(self) -> float:
        return self.targets / self.watched.steady

    @property
    def wall_speed(self) -> float:
        return self.tokens / (self.watched.clock[-1] - self.watched.clock[0])

    @property
    def peak_mb(self) -> float:
        return self.watched.peak / 2**20


COLUMNS = {
    "tokens/CPU s": lambda one: one.speed,
    "targets/CPU s": lambda one: one.learnt,
    "tokens/s": lambda one: one.wall_speed,
    "peak MB": lambda one: one.peak_mb,
    "CPU s, steps": lambda one: one.watched.steady,
    "CPU s until the last": lambda one: one.watched.at[-1],
    "CPU s, all": lambda one: one.watched.cpu,
}


def main(words: Sequence[str]) -> None:
    if words[:1] == ["all"]:
        from tests.bench import suite

        suite.main(words[1:])
        return
    asked = parse(words)
    work = WORKLOADS[asked.workload]
    rows = asked.rows or work.rows
    results = race(work, rows, asked)
    print(table(results))
    print(equal_work(results))
    print(ratios(results))


def parse(words: Sequence[str]) -> argparse.Namespace:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument(
        "workload", choices=WORKLOADS, help="; ".join(f"{one.name}: {one.says}" for one in WORKLOADS.values())
    )
    made.add_argument("--runners", default="peftkit,trainer-mb1", help=f"of {', '.join(RUNNERS)}, peftkit@FOLDER")
    made.add_argument("--precision", default="fp32", choices=("fp32", "bf16"))
    made.add_argument("--turns", type=int, default=1)
    made.add_argument("--rows", type=int, help="rows in an epoch; 16 make a step, and at least 32 are needed")
    made.add_argument("--threads", type=int, default=1)
    made.add_argument("--seed", type=int, default=42)
    made.add_argument("--set", action="append", default=[], metavar="FLAG=VALUE", help="a setting of peftkit's runs")
    made.add_argument(
        "--lock", type=Path, help="a file that is locked during each run, so that no two are measured at once"
    )
    made.add_argument("--whole", action="store_true", help="let the runners come to their own end")
    made.add_argument("--keep", action="store_true", help="keep the folder with what the runs wrote")
    made.add_argument("--show", action="store_true", help="print the commands, and run nothing")
    asked = made.parse_args(words)
    asked.runners = asked.runners.split(",")
    return asked


def race(work: Workload, rows: int, asked: argparse.Namespace) -> dict[str, list[Result]]:
    """Every runner `turns` times, in turns."""
    where = place(work, rows, asked.seed)
    folder = Path(mkdtemp(prefix="race-", dir=made(CACHE / "runs")))
    print(f"{work.name}: {work.says}; {rows} rows, {asked.precision}, {asked.threads} thread(s), {machine()}")
    results: dict[str, list[Result]] = {name: [] for name in asked.runners}
    try:
        for turn in range(asked.turns):
            for name in asked.runners:
                out = folder / f"{name.replace('/', '_')}-{turn}"
                one = command(name, Asked(work, where, out, asked.precision, asked.seed, tuple(asked.set)))
                if asked.show:
                    print(" ".join(one.words))
                    continue
                if one.needs:
                    one.needs.make()
                with locked(asked.lock):
                    results[name].append(run(one, where, work, asked, folder / f"{out.name}.log"))
                begun_alike(work, results)
                print(f"  {turn + 1} {name}: {results[name][-1].speed:.0f} tokens/CPU s", file=sys.stderr, flush=True)
    finally:
        if asked.keep:
            print(f"what they wrote: {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)
    if asked.show:
        sys.exit(0)
    return results


def run(one: Command, where: Place, work: Workload, asked: argparse.Namespace, log: Path) -> Result:
    """One run: what it took, and what was done in it."""
    steps = -(-len(where.tokens) // work.epochs // work.total) * work.epochs
    watched = watch(one.words, environment(one, asked.threads), log, one.lines, steps, one.cwd, asked.whole)
    rows = [row for row in json_lines(one.lines) if "loss" in row and "split" not in row]
    by_step = list(per_step(where, work))
    tokens = [row.get("tokens", known[0]) for row, known in zip(rows, by_step, strict=True)]
    targets = [row["targets"] for row in rows]
    if sum(tokens) != sum(where.tokens) or sum(targets) != sum(where.targets):
        sys.exit(
            f"{' '.join(one.words)} learnt {sum(targets)} targets of {sum(tokens)} tokens;"
            f" the rows have {sum(where.targets)} of {sum(where.tokens)}"
        )
    return Result(sum(tokens[1:]), int(sum(targets[1:])), watched, tuple(float(row["loss"]) for row in rows))


def begun_alike(work: Workload, results: dict[str, list[Result]]) -> None:
    """SystemExit if the first step's losses differ. A classifier's head is made at random by each runner: those do."""
    losses = {name: runs[-1].losses[0] for name, runs in results.items() if runs}
    expected = next(iter(losses.values()))
    if work.task == "chat" and not all(abs(one - expected) <= ALIKE for one in losses.values()):
        told = "; ".join(f"{name} {one:.5f}" for name, one in losses.items())
        sys.exit(f"other tokens, another mask or other weights: the first step's losses are {told}")


def per_step(where: Place, work: Workload) -> Iterator[tuple[int, int]]:
    """Tokens and targets of each step, in the order that all share; an epoch's last step takes what is left."""
    epoch = len(where.tokens) // work.epochs
    for first in range(0, len(where.tokens), epoch):
        for left in range(first, first + epoch, work.total):
            rows = slice(left, min(left + work.total, first + epoch))
            yield sum(where.tokens[rows]), sum(where.targets[rows])


def environment(one: Command, threads: int) -> dict[str, str]:
    set_here = {
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "DS_ACCELERATOR": "cpu",
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": str(one.cwd) if one.words[0] == sys.executable else "",
    }
    return {**os.environ, **set_here}


def table(results: dict[str, list[Result]]) -> str:
    """A line for each runner: the median [least-most] of each measure."""
    lines = [f"{'':24}" + "".join(f"{title:>24}" for title in COLUMNS)]
    for name, runs in results.items():
        cells = [spread([read(one) for one in runs]) for read in COLUMNS.values()]
        lines.append(f"{name[-24:]:24}" + "".join(f"{cell:>24}" for cell in cells))
    return "\n".join(lines)


def equal_work(results: dict[str, list[Result]]) -> str:
    """The losses of the first and of the last step: the same work has the same ones."""
    told = [f"{name} {runs[0].losses[0]:.5f} -> {runs[0].losses[-1]:.4f}" for name, runs in results.items()]
    return f"loss of the first and the last step: {'; '.join(told)}"


def ratios(results: dict[str, list[Result]]) -> str:
    """The first runner against each other one, turn by turn: speed and memory."""
    first, *others = results
    lines = []
    for other in others:
        pairs = list(zip(results[first], results[other], strict=True))
        faster = spread([one.speed / peer.speed for one, peer in pairs])
        smaller = spread([one.peak_mb / peer.peak_mb for one, peer in pairs])
        lines.append(f"{first} against {other}: {faster} x tokens/CPU s, {smaller} x peak memory")
    return "\n".join(lines)


@contextmanager
def locked(path: Path | None) -> Iterator[None]:
    if path is None:
        yield
        return
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def machine() -> str:
    """The processor's name and how many of it there are."""
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return f"{len(names)} x {names[0].partition(':')[2].strip()}" if names else "an unknown processor"


def made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


if __name__ == "__main__":
    main(sys.argv[1:])
