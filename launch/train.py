"""`peftkit train` for launchers: `deepspeed launch/train.py --strategy lora`; so too torchrun, and python by itself."""

import sys
from importlib.util import find_spec
from pathlib import Path

LAUNCH = Path(__file__).resolve().parent
# Python puts a script's own folder first, where a file named like a library would shadow it.
sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != LAUNCH]
found = find_spec("peftkit")
if found is None or found.origin is None:  # not installed (a folder of that name without __init__.py is no package)
    sys.path.insert(0, str(LAUNCH.parent))

from peftkit.cli.main import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
