"""Starting processes with real launchers, and ending exactly those."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent


def environment(**more: str) -> dict[str, str]:
    """This process's environment, as a user's shell has it: no launcher around it, one thread per process."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT")
    }
    path = os.pathsep.join([str(BIN), os.environ.get("PATH", "")])
    python_path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    return {**kept, "PATH": path, "PYTHONPATH": python_path, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", **more}


def run(words: Sequence[str | Path], timeout: float = 300, **more: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a process group of its own; whatever of it is left after `timeout` is ended with it."""
    with subprocess.Popen(
        [str(word) for word in words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
        env=environment(**more),
        start_new_session=True,
    ) as process:
        try:
            output, _ = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            output, _ = process.communicate()
            output += f"\n[ended after {timeout} seconds]"
    return subprocess.CompletedProcess(list(map(str, words)), process.returncode, output)


def torchrun(processes: int, *words: str | Path, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    """`python` for one process, else torchrun on a free port of this machine."""
    if processes == 1:
        return run([sys.executable, *words], timeout)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    return run([*launcher, *words], timeout)
