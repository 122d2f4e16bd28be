"""Saves a checkpoint, then dies in the middle of the next one's second file: `killed_in_a_save.py RUN`."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

from peftkit.engine import checkpoint
from peftkit.engine.checkpoint import Progress
from peftkit.engine.saver import save
from peftkit.engine.world import joined
from peftkit.run_folder import RunFolder
from tests.engine.odd import Odd, opened, train

write = checkpoint.save_file
written = 0


def write_half_of_the_fifth(tensors: Any, path: Path) -> None:
    global written
    written += 1
    write(tensors, path)
    if written == 5:
        os.truncate(path, path.stat().st_size // 2)
        os.kill(os.getpid(), signal.SIGKILL)


with joined() as world:
    checkpoint.save_file = write_half_of_the_fifth  # type: ignore[assignment]
    engine = opened(Odd(), "zero2", world)
    for step in range(2):
        train(engine, [step], world)
        save(engine, RunFolder(Path(sys.argv[1])), Progress(step=step + 1), world, {"source": "", "fingerprint": ""})
