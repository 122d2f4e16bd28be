"""Two processes of one thread each against one process of two threads, on the same rows, in turns: what ZeRO costs on two cores.

python tests/bench/scaling.py [WORKLOAD [ROWS [DEEPSPEED]]]       W1, 48 rows, zero2

Printed are useful tokens for each second of the wall and of CPU, after the first step, and the ratio of the two. It needs two
cores that nothing else uses; nothing is promised.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from tests.bench.measure import spread  # noqa: E402
from tests.bench.runners import Asked, peftkit  # noqa: E402
from tests.bench.tree import watch  # noqa: E402
from tests.bench.workloads import WORKLOADS, place  # noqa: E402

TURNS = 2
WAYS = {"1 process, 2 threads": (1, 2), "2 processes, 1 thread": (2, 1)}


@dataclass(frozen=True)
class Pace:
    """Useful tokens for each second after the first step, and the tree's peak memory."""

    wall: float
    cpu: float
    peak_mb: float


def main(name: str = "W1", rows: str = "48", deepspeed: str = "zero2") -> None:
    found: dict[str, list[Pace]] = {way: [] for way in WAYS}
    for _ in range(TURNS):
        for way, (processes, threads) in WAYS.items():
            found[way].append(run(name, int(rows), deepspeed, processes, threads))
    for way, paces in found.items():
        cells = [
            f"{spread([getattr(pace, kind) for pace in paces])} {unit}"
            for kind, unit in (("wall", "tokens/s"), ("cpu", "tokens/CPU s"), ("peak_mb", "MB"))
        ]
        print(f"{way:24} {'   '.join(cells)}")
    one, two = found.values()
    for kind in ("wall", "cpu"):
        print(
            f"{kind}: {spread([getattr(b, kind) / getattr(a, kind) for a, b in zip(one, two, strict=True)])} of one process"
        )


def run(name: str, rows: int, deepspeed: str, processes: int, threads: int) -> Pace:
    work = WORKLOADS[name]
    where = place(work, rows, 42)
    with tempfile.TemporaryDirectory(prefix="scaling-", ignore_cleanup_errors=True) as folder:
        out = Path(folder) / "run"
        asked = Asked(work, where, out, "fp32", 42, (f"deepspeed={deepspeed}",))
        made = peftkit(asked)
        words = made.words[made.words.index("train") + 1 :]
        torchrun = shutil.which("torchrun", path=str(Path(sys.executable).parent)) or "torchrun"
        start = [
            torchrun,
            "--nproc-per-node",
            str(processes),
            "--master-port",
            "29517",
            str(ROOT / "launch" / "train.py"),
        ]
        env = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(ROOT)}
        steps = -(-len(where.tokens) // work.total)
        seen = watch([*start, *words], env, Path(folder) / "log", made.lines, steps, ROOT)
    tokens = sum(where.tokens[work.total :])
    return Pace(tokens / (seen.clock[-1] - seen.clock[0]), tokens / seen.steady, seen.peak / 2**20)


if __name__ == "__main__":
    main(*sys.argv[1:])
