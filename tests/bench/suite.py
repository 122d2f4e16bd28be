"""All races, with the machine's limits in the same run; what they found is a dated table in tests/bench/RESULTS.md.

python tests/bench/race.py all --turns 3 [--only W1,W2] [--lock FILE] [--out FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import Any

from tests.bench import race
from tests.bench.limits import SHAPES
from tests.bench.share import Need, fastest, need
from tests.bench.workloads import WORKLOADS, place

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


@dataclass(frozen=True)
class Race:
    """One race, and what is wanted of it: peer -> (speed at least, memory at most) in parts of the peer's."""

    workload: str
    wanted: dict[str, tuple[float | None, float | None]]
    precision: str = "fp32"
    rows: int | None = None
    settings: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return f"{self.workload} {self.precision}"


READ = """\
Medians [least-most] of runs in turns; ratios turn by turn. Tokens are useful ones, without padding; CPU seconds are the
process tree's, from the end of the first step to the end of the last, and memory is its peak until then. The share is of
the fastest product of the format below, by the products that the workload needs: the head's at targets alone, attention's
own left out. torchtune and LLaMA-Factory have micro-batches of 4 rows, padded, and keep all activations: torchtune's default, not
LLaMA-Factory's. trl computes them again, which is its default."""
ANY = (None, None)
BEST = (1.3, 1.0)
RACES = (
    Race(
        "W1",
        {
            "trainer": (3.5, 0.5),
            "trainer-mb1": BEST,
            "trainer-medium": BEST,
            "litgpt": BEST,
            "trl": ANY,
            "torchtune": ANY,
            "llamafactory": ANY,
        },
    ),
    Race("W1", {"trainer-mb1": (1.4, 0.8), "trainer-mb1-autocast": (1.4, 0.8), "litgpt": ANY}, "bf16"),
    Race("W1v", {"trainer": (5, 0.25), "trainer-mb1": (2.5, None)}),
    Race("W1r", {"trainer-mb1": ANY}, rows=32),
    Race("W2", {"trainer": (2.5, None), "trainer-group": (1.4, None)}, rows=96),
    Race("W2lora", {"trainer": (2.5, None), "trainer-group": (1.4, None)}, rows=96),
    Race("W2layers", {"trainer": (3, None)}, rows=64, settings=("strategy.cache_trunk=true",)),
    Race("W4", {"trainer": (3, None), "trainer-mb1": (1.6, None)}, rows=48),
)


SCRIPTS = {
    "W3": ("An adapter merged into its base, Llama of 1.1 billion parameters in bf16", ("merge.py --turns {}",)),
    "W5": ("Time to the first step, and 50,000 rows tokenised", ("first_step.py {}", "tokenise.py 50000 {}")),
    "W6": ("Evaluation and 200 answers", ("answers.py {}",)),
}
"""What has a script of its own; the number of turns stands at the brackets."""


def main(words: Sequence[str]) -> None:
    asked = parse(words)
    only = asked.only.split(",") if asked.only else [*(one.workload for one in RACES), *SCRIPTS]
    chosen = [one for one in RACES if one.workload in only]
    found = limits()
    lines = head(asked, found)
    for one in chosen:
        rows = asked.rows or one.rows or WORKLOADS[one.workload].rows
        results = race.race(WORKLOADS[one.workload], rows, options(one, asked))
        work = WORKLOADS[one.workload]
        needed = need(work, place(work, rows, asked.seed))
        lines += told(one, rows, results, needed, fastest(found["products"][one.precision]))
        asked.out.write_text("\n".join(lines) + "\n", encoding="utf-8")  # what was found by now, should it be ended
    for name in (name for name in SCRIPTS if name in only):
        title, scripts = SCRIPTS[name]
        lines += ["", f"## {name}: {title}", "", "```", *(output(script, asked) for script in scripts), "```"]
        asked.out.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


def output(script: str, asked: argparse.Namespace) -> str:
    """What a script prints."""
    name, *words = script.format(asked.turns).split()
    words = [sys.executable, str(HERE / name), *words]
    with race.locked(asked.lock):
        return subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout.rstrip()


def parse(words: Sequence[str]) -> argparse.Namespace:
    made = argparse.ArgumentParser(prog="race.py all", description=__doc__)
    made.add_argument("--turns", type=int, default=3)
    made.add_argument("--only", help="workloads, with commas between them")
    made.add_argument("--rows", type=int, help="rows of each race, instead of its own number")
    made.add_argument("--lock", type=Path)
    made.add_argument("--out", type=Path, default=HERE / "RESULTS.md")
    made.add_argument("--seed", type=int, default=42)
    return made.parse_args(words)


def options(one: Race, asked: argparse.Namespace) -> argparse.Namespace:
    """As `race.py` would be told on its command line."""
    words = [one.workload, "--runners", ",".join(["peftkit", *one.wanted]), "--precision", one.precision]
    words += ["--turns", str(asked.turns), "--seed", str(asked.seed)]
    words += [word for setting in one.settings for word in ("--set", setting)]
    return race.parse([*words, *(("--lock", str(asked.lock)) if asked.lock else ())])


def limits() -> dict[str, Any]:
    """Of one thread, in a process of its own."""
    words = [sys.executable, str(HERE / "limits.py"), "--json"]
    env = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"}
    found: dict[str, Any] = json.loads(
        subprocess.run(words, check=True, capture_output=True, text=True, env=env).stdout
    )
    return found


def head(asked: argparse.Namespace, found: dict[str, Any]) -> list[str]:
    """The title, the machine, and its limits."""
    when = datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")
    ways = [(name, way) for name in found["products"] for way in ("F.linear", "oneDNN")]
    lines = [
        "# Races",
        "",
        f"Written by `python tests/bench/race.py all --turns {asked.turns}` on {when}:",
        f"{race.machine()}, one thread, commit {commit()}; load average {os.getloadavg()[1]:.1f} when it began.",
        *READ.splitlines(),
        "",
        "## The machine",
        "",
        "| GFLOP a CPU second | " + " | ".join(f"{name} {way}" for name, way in ways) + " |",
        "| --- |" + " --- |" * len(ways),
    ]
    for shape in SHAPES:
        cells = [f"{found['products'][name][shape][way]:.0f}" for name, way in ways]
        lines.append(f"| {shape} | {' | '.join(cells)} |")
    return [*lines, "", f"Copying: {found['copy']:.0f} GB/s."]


def told(one: Race, rows: int, results: dict[str, list[race.Result]], needed: Need, peak: float) -> list[str]:
    """A race's table."""
    settings = f", peftkit with {' '.join('--' + setting.replace('=', ' ') for setting in one.settings)}" * bool(
        one.settings
    )
    lines = [
        "",
        f"## {one.name}: {WORKLOADS[one.workload].says}, {rows} rows{settings}",
        "",
        "| runner | tokens/CPU s | targets/CPU s | share | peak MB | CPU s until the last step | loss, first to last step |"
        " peftkit is faster | wanted | peftkit's memory | wanted |",
        "| --- |" + " --- |" * 10,
    ]
    for name, runs in results.items():
        share = median(needed.of(run.tokens, run.targets) / run.watched.steady / 1e9 / peak for run in runs)
        cells = [
            name,
            race.spread([run.speed for run in runs]),
            f"{median(run.learnt for run in runs):.0f}",
            f"{share:.0%}",
            race.spread([run.peak_mb for run in runs]),
            f"{median(run.watched.at[-1] for run in runs):.1f}",
            f"{runs[0].losses[0]:.4f} to {runs[0].losses[-1]:.4f}",
            *against(results["peftkit"], runs, *one.wanted.get(name, ANY)),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def against(ours: list[race.Result], runs: list[race.Result], faster: float | None, smaller: float | None) -> list[str]:
    """The ratios to a peer, each beside what is wanted."""
    if ours is runs:
        return [""] * 4
    pairs = list(zip(ours, runs, strict=True))
    return [
        race.spread([mine.speed / theirs.speed for mine, theirs in pairs]),
        f"{faster:g}" if faster else "",
        race.spread([mine.peak_mb / theirs.peak_mb for mine, theirs in pairs]),
        f"{smaller:g}" if smaller else "",
    ]


def commit() -> str:
    done = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or "unknown"
