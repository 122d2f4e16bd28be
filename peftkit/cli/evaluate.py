"""`peftkit eval MODEL ROWS`: a trained model's numbers on a file. `peftkit predict MODEL ROWS --out FILE`: its answers."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from peftkit.cli.words import Parser, allow_code
from peftkit.errors import ConfigError

MODEL = "RUN, RUN/checkpoints/step-000100 or RUN/export/NAME"


def run(words: list[str]) -> int:
    """Score the model on the rows."""
    parser = _parser("eval", "Score a trained model on rows: the same numbers as in training, in any world.")
    parser.add_argument("--metrics", nargs="+", default=[], help="names, hub:NAME or a script (default: the task's)")
    parser.add_argument("--by", metavar="COLUMN", help="score the column's values apart, too")
    parser.add_argument("--bootstrap", type=int, default=0, metavar="N", help="95%% intervals from so many samples")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the numbers to this JSON file")
    asked = parser.read(words)
    if asked is None:
        return 0
    check_reading(asked)
    check_metrics(asked.metrics)
    if asked.bootstrap < 0:
        raise ConfigError(f"--bootstrap {asked.bootstrap}: a number of samples, or 0 for no intervals")
    from peftkit.flows.evaluate import Asked, evaluate

    own = {"metrics": asked.metrics, "by": asked.by, "bootstrap": asked.bootstrap, "out": asked.out}
    evaluate(asked.model, Asked(rows=asked.rows, checkpoint=asked.checkpoint, **own, **reading(asked)), asked.verbose)
    return 0


def predict(words: list[str]) -> int:
    """Write the model's answers beside the rows."""
    parser = _parser("predict", "Write a trained model's answers beside the rows' own columns, in their order.")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="a new .jsonl, .csv or .tsv file")
    asked = parser.read(words)
    if asked is None:
        return 0
    check_reading(asked)
    from peftkit.flows.predict import Asked
    from peftkit.flows.predict import predict as answer

    answer(
        asked.model, Asked(rows=asked.rows, out=asked.out, checkpoint=asked.checkpoint, **reading(asked)), asked.verbose
    )
    return 0


def _parser(command: str, description: str) -> Parser:
    parser = Parser(command, description)
    parser.add_argument("model", metavar="MODEL", type=Path, help=MODEL)
    parser.add_argument("rows", metavar="ROWS", help="a file, a folder, a URL or a hub name")
    which = "of a run: last, best, average or a step (default: the run's --checkpoint.final)"
    parser.add_argument("--checkpoint", help=which)
    add_reading(parser)
    return parser


def add_reading(parser: Parser) -> None:
    """How rows are read and answered: what every command with a trained model and rows has."""
    parser.add_argument("--batch", type=int, default=8, help="rows in one forward pass (default: 8)")
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N rows")
    columns = "task's column = the file's, where it has another name: --columns text=review"
    parser.add_argument("--columns", "--data.columns", nargs="+", default=[], metavar="OWN=FILE", help=columns)
    parser.add_argument("--max-new-tokens", type=int, help="longest text that is written (default: as in training)")
    parser.add_argument("--num-beams", type=int, help="beams that are followed (default: as in training)")
    allow_code(parser)
    parser.add_argument("--verbose", action="store_true", help="show libraries' messages and tracebacks")


def reading(asked: argparse.Namespace) -> dict[str, Any]:
    """What `add_reading` asked for."""
    texts = {"max_new_tokens": asked.max_new_tokens, "num_beams": asked.num_beams}
    return {
        "batch": asked.batch,
        "limit": asked.limit,
        "columns": _columns(asked.columns),
        "trust": asked.trust,
        "generate": {name: value for name, value in texts.items() if value is not None},
    }


def check_reading(asked: argparse.Namespace, *counts: str) -> None:
    """Refuse counts below one, those of `counts` too, and columns that are none."""
    for flag in ("batch", "limit", "max_new_tokens", "num_beams", *counts):
        value = getattr(asked, flag)
        if value is not None and value < 1:
            raise ConfigError(f"--{flag.replace('_', '-')} {value}: at least 1")
    _columns(asked.columns)


def _columns(words: list[str]) -> dict[str, str]:
    """`text=review label=stars`, or the form of `peftkit train`: `'{text: review, label: stars}'`."""
    import yaml

    named: dict[str, str] = {}
    for word in words:
        try:
            read = yaml.safe_load(word) if word.startswith("{") else dict([word.split("=", 1)])
        except (yaml.YAMLError, ValueError):
            raise ConfigError(f"--columns {word}: wants OWN=FILE, such as text=review") from None
        named |= {str(own): str(name) for own, name in read.items()}
    return named


def check_metrics(names: list[str], flag: str = "--metrics") -> None:
    """Refuse a misspelt name before torch is imported."""
    from peftkit.metrics import Metric
    from peftkit.registry import did_you_mean

    for word in names:
        name = Metric.from_word(word)["name"]
        if name not in Metric.registry:
            near = did_you_mean(name, Metric.registry)
            raise ConfigError(f"{flag} {word} is no metric{near}; there are: {', '.join(Metric.registry)}")
        problems = [problem.replace("--eval.metrics", flag) for problem in Metric.model_validate(word).conflicts(None)]
        if problems:
            raise ConfigError(problems)
