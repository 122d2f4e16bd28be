"""`peftkit serve FOLDER [NAME=FOLDER ...]`: trained models over HTTP, as OpenAI's clients and `curl` ask them."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic_core import PydanticCustomError

from peftkit.cli.words import Parser, allow_code
from peftkit.config.amount import Amount
from peftkit.config.duration import Duration
from peftkit.errors import ConfigError
from peftkit.run_folder import STEP

T = TypeVar("T", Amount, Duration)
EXTRA = "peftkit serve needs fastapi, uvicorn and prometheus-client: pip install 'peftkit[serve]'"
ENDS = """
A key is asked for if PEFTKIT_API_KEY is set. Texts at /v1/chat/completions and /v1/completions, rows at /predict,
a page to try it at /, its description at /openapi.json, its numbers at /metrics.
"""


def run(words: list[str]) -> int:
    """Serve until SIGTERM or Ctrl-C; exit code 0 then."""
    parser = _parser()
    asked = parser.read(words)
    if asked is None:
        return 0
    settings, folders = _settings(asked), named(asked.folders)
    if missing := [str(folder) for folder in folders.values() if not folder.exists()]:  # said before imports of seconds
        where = "name RUN, RUN/checkpoints/step-000100 or RUN/export/NAME"
        raise ConfigError(f"{', '.join(missing)}: there is nothing; {where}")
    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError:
        raise ConfigError(EXTRA) from None
    from peftkit.flows.serve import Asked, serve
    from peftkit.serving.gate import Limits

    limits = Limits(settings.pop("max_body"), settings.pop("timeout"))
    serve(Asked(folders=folders, limits=limits, **settings), asked.verbose)
    return 0


def named(words: Sequence[str]) -> dict[str, Path]:
    """`NAME=FOLDER` or `FOLDER`, which has the name of its run. ConfigError if two have the same."""
    found: dict[str, Path] = {}
    for word in words:
        name, given, place = word.partition("=")
        folder = Path(place if given else word).expanduser()
        name = name if given else name_of(folder)
        if not name or not folder.name:
            raise ConfigError(f"{word}: wants FOLDER or NAME=FOLDER")
        if name in found:
            raise ConfigError(
                f"{found[name]} and {folder} are both named {name}; name them: NAME={found[name]} OTHER={folder}"
            )
        found[name] = folder
    return found


def name_of(folder: Path) -> str:
    """RUN, RUN/checkpoints/step-000100 and RUN/export/merged are named after the run, another folder after itself."""
    folder = folder.absolute()
    inside = folder.parent.name == "export" or (folder.parent.name == "checkpoints" and STEP.match(folder.name))
    return folder.parents[1].name if inside else folder.name


def _parser() -> Parser:
    parser = Parser("serve", "Serve trained models over HTTP; several adapters of one base share it.")
    parser.epilog = ENDS
    where = "RUN, RUN/checkpoints/step-000100 or RUN/export/NAME; asked for by the run's name, or by NAME=FOLDER"
    parser.add_argument("folders", metavar="FOLDER", nargs="+", help=where)
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0: from everywhere (default: this machine alone)")
    parser.add_argument("--port", type=int, default=8000, help="0 takes a free one (default: 8000)")
    parser.add_argument("--batch", type=int, default=16, help="texts or rows that are computed together (default: 16)")
    parser.add_argument("--window", default="0.005", help="how long rows wait for others, in seconds (default: 0.005)")
    parser.add_argument("--max-queue", type=int, default=256, help="so many may wait; then 429 (default: 256)")
    parser.add_argument("--max-body", default="10MB", help="largest request (default: 10MB)")
    parser.add_argument("--timeout", default="2m", help="longest time of a request (default: 2m)")
    parser.add_argument("--grace", default="30s", help="time to finish when asked to stop (default: 30s)")
    which = "of a run: last, best, average or a step (default: the run's --checkpoint.final)"
    parser.add_argument("--checkpoint", help=which)
    parser.add_argument("--no-verify", action="store_true", help="do not hash an export's weights first")
    allow_code(parser)
    parser.add_argument("--verbose", action="store_true", help="show libraries' messages and tracebacks")
    return parser


def _settings(asked: argparse.Namespace) -> dict[str, Any]:
    for flag, least in (("batch", 1), ("max_queue", 1), ("port", 0)):
        value = getattr(asked, flag)
        if value < least:
            raise ConfigError(f"--{flag.replace('_', '-')} {value}: at least {least}")
    if asked.port > 65535:
        raise ConfigError(f"--port {asked.port}: at most 65535")
    return {
        "host": asked.host,
        "port": asked.port,
        "batch": asked.batch,
        "window": float(_read(Duration, "window", asked.window)),
        "max_queue": asked.max_queue,
        "max_body": int(_read(Amount, "max-body", asked.max_body)),
        "timeout": float(_read(Duration, "timeout", asked.timeout)),
        "grace": max(1, round(_read(Duration, "grace", asked.grace))),
        "checkpoint": asked.checkpoint,
        "verify": not asked.no_verify,
        "trust": asked.trust,
    }


def _read(kind: type[T], flag: str, word: str) -> T:
    try:
        return kind.read(word)
    except PydanticCustomError as problem:
        raise ConfigError(f"--{flag} {problem}") from None
