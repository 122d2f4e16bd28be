"""What a loss needs of the model at its start belongs to the rows that it was computed of."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from peftkit.data.store import Store, write
from peftkit.engine.world import World
from peftkit.errors import CheckpointError
from peftkit.evaluation.reference import LENGTHS, join_reference
from peftkit.tasks import Task

TASK: Task = Task.model_validate({"name": "preference", "loss_type": "kto"})


def rows(folder: Path, *lengths: int) -> Store:
    return write(folder, [{"input_ids": [5] * length, "labels": [5] * length, "wanted": 1} for length in lengths])


def test_numbers_of_other_rows_are_refused(tmp_path: Path) -> None:
    kept = tmp_path / "reference"
    kept.mkdir()
    np.save(kept / "reference.npy", np.array([0.5, 0.25], np.float32))
    np.save(kept / f"{LENGTHS}.npy", np.array([3, 4]))
    same, other = rows(tmp_path / "same", 3, 4), rows(tmp_path / "other", 4, 3)
    join_reference(None, (), same, TASK, World(0, 1, 0), kept, first_time=False)
    assert [same[row]["reference"] for row in (0, 1)] == [0.5, 0.25]
    with pytest.raises(CheckpointError, match="go on with the rows that the run began with"):
        join_reference(None, (), other, TASK, World(0, 1, 0), kept, first_time=False)
