"""Runs the CHECKS of test modules on all processes of one world, so that one launch pays for all: `together.py OUT MODULE ..`.

A check is called with its process's World and a folder that all share. OUT/process-K.json has what went wrong, by name.
"""

from __future__ import annotations

import gc
import json
import sys
import traceback
from datetime import timedelta
from importlib import import_module
from pathlib import Path

from peftkit.engine.open import ready_deepspeed
from peftkit.engine.world import World, joined


def main(out: Path, modules: list[str]) -> None:
    wrong: dict[str, str] = {}
    with joined(timedelta(seconds=200)) as world:
        checks = {module: import_module(module).CHECKS for module in modules}
        ready_deepspeed()
        gc.freeze()  # DeepSpeed collects garbage ten times for some engines, among all that was imported
        for module in modules:
            for name, check in checks[module].items():
                folder = out / module / name
                folder.mkdir(parents=True, exist_ok=True)
                wrong[f"{module} {name}"] = outcome(check, world, folder)
                (out / f"process-{world.process}.json").write_text(json.dumps(wrong))
                gc.collect()  # a ZeRO-3 case must not leave its hooks behind


def outcome(check: object, world: World, folder: Path) -> str:
    try:
        check(world, folder)  # type: ignore[operator]
    except Exception:
        told = traceback.format_exc()
    else:
        told = ""
    world.wait()
    return told


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
