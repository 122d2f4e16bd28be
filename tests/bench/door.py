"""The command line's door: `peftkit --help`, all settings' help, and a misspelt setting (promised: under 0.5 s).

python tests/bench/door.py [TURNS]
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.bench.measure import in_turns, table

SAID = {
    "--help": ["--help"],
    "train --help": ["train", "--help"],
    "a settings error": ["train", "--optm.lr", "3", "--strategy", "lorra"],
}


def main(turns: int) -> None:
    peftkit = str(Path(sys.executable).with_name("peftkit"))
    commands = {name: [peftkit, *words] for name, words in SAID.items()}
    with tempfile.TemporaryDirectory(prefix="door-") as folder:
        costs = in_turns(commands, turns, Path(folder), codes=(0, 2))
    print(table(costs, {"wall": "wall seconds", "cpu": "CPU seconds", "peak_mb": "peak MB"}))


if __name__ == "__main__":
    main(int(sys.argv[1]) if sys.argv[1:] else 10)
