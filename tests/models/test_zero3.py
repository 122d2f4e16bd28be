"""Under ZeRO-3 a base is loaded in shards that hold the same weights, and everything about it is said as without."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiny import save_tiny

SCRIPT = Path(__file__).with_name("zero3_script.py")


@pytest.mark.timeout(300)
def test_the_same_base_in_shards(tmp_path: Path) -> None:
    for family, head in (("bert", "masked_lm"), ("llama", None), ("gemma", None)):
        save_tiny(tmp_path / family, family, head=head)
    save_tiny(tmp_path / "bert-of-two", "bert", num_labels=2)
    single = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, **single, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "PYTHONPATH": root}
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(tmp_path)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.splitlines()[-1] == "the same"
