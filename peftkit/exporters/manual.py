"""peftkit.json in an export's folder: how it is opened, and how it reads rows and decides."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from peftkit.exporters.base import Exporter, Reading
from peftkit.redact import redact_all
from peftkit.tasks import Task

MANUAL = "peftkit.json"
READ_AS = ("max_length", "truncate", "stride", "columns")
"""Settings of the data that say how a row is read, whichever file it comes from."""
FOR_PEOPLE = (MANUAL, "README.md", "certificate.json")
"""What no model is read from."""


@dataclass(frozen=True)
class Manual:
    """What a stranger needs to get from this model the answers that were certified."""

    exporter: Exporter
    reading: Reading
    task: Task
    """With its labels and thresholds."""
    data: Mapping[str, Any]
    """Settings of the data by which a row is read: `max_length`, `truncate`, `stride`, `columns`."""
    generate: Mapping[str, Any]
    """How texts are written."""
    files: Sequence[str] = ()
    """What lay in the folder when it was written: without one of them another model may answer, and nobody would know."""

    def write(self, folder: Path) -> None:
        held = {
            "exporter": self.exporter.model_dump(mode="json"),
            "reading": self.reading.to_json(),
            "task": self.task.model_dump(mode="json"),
            "data": dict(self.data),
            "generate": dict(self.generate),
            "files": sorted(path.name for path in folder.iterdir() if path.name not in FOR_PEOPLE),
        }
        (folder / MANUAL).write_text(json.dumps(redact_all(held), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path, trust: bool = False) -> Manual:
        """What lies in the folder, whoever wrote it: that Python code may be run says the user alone (`trust`)."""
        held = json.loads((folder / MANUAL).read_text(encoding="utf-8"))
        exporter: Exporter = Exporter.model_validate(held["exporter"])
        task: Task = Task.model_validate(held["task"])
        return cls(
            exporter,
            replace(Reading.from_json(held["reading"]), trust_remote_code=trust),
            task,
            {name: value for name, value in held["data"].items() if name in READ_AS},
            held["generate"],
            held.get("files", ()),
        )
