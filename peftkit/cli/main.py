"""Words in, exit code out: the `peftkit` command.

0 done · 1 the run failed · 2 settings, data or model are wrong · 75 stopped as asked, and can go on · 130 interrupted.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module

from peftkit.cli.screen import say_interrupted, say_problem, say_unexpected
from peftkit.errors import ConfigError, PeftkitError
from peftkit.lazy import uncollected
from peftkit.registry import did_you_mean

COMMANDS = {
    "train": ("train", "Fine-tune a model; `peftkit train --help` lists the settings."),
    "submit": ("submit", "Queue a training on a SLURM cluster, where it goes on until it is done."),
    "export": ("export", "Turn a run into what can be deployed: its adapter, or the merged model."),
    "merge": ("merge", "Fold adapters of PEFT's format, made by any tool, into their base."),
    "verify": ("verify", "Check an export anywhere: its files, its base and its answers, against its certificate."),
    "push": ("push", "Upload an export to the hub: what was certified, private unless you say otherwise."),
    "eval": ("evaluate", "Score a trained model on a file, with intervals and by any column."),
    "predict": ("evaluate", "Write a trained model's answers beside the rows of a file."),
    "serve": ("serve", "Serve trained models over HTTP: OpenAI's routes for texts, /predict for rows."),
    "compare": ("compare", "Two models on the same rows: paired tests, the rows that changed, texts side by side."),
    "data show": ("data", "Show rows as the model will see them, targets coloured."),
    "data check": ("data", "Find, place and mend what is wrong with the rows: duplicates, leakage, labels, spans, ..."),
    "bench": ("bench", "Take some steps, and say where their time and memory go."),
    "jobs": ("jobs", "List submitted runs: how they stand, and why they wait or failed."),
    "watch": ("jobs", "Follow a run's state and log until its end; the exit code says how it ended."),
    "cancel": ("jobs", "Let a run save and stop, and cancel its job."),
    "logs": ("jobs", "Say who is to blame: the first cause, every process's error, the ends of the logs."),
    "choices": ("choices", "List every strategy, task, metric, optimizer, schedule, ..."),
    "version": ("version", "Show the versions of peftkit and of what it stands on."),
}
HELP = ("-h", "--help", "help")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; what goes wrong is told on stderr, in a sentence each."""
    words = list(sys.argv[1:] if argv is None else argv)
    code = _run(words)
    if code and int(os.environ.get("WORLD_SIZE") or 1) > 1:
        # The process group stands, and closing it may wait for ever for a process that has gone.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def _run(words: list[str]) -> int:
    try:
        return dispatch(words)
    except PeftkitError as problem:
        say_problem(problem)
        return problem.exit_code
    except KeyboardInterrupt:
        say_interrupted()
        return 130
    except BrokenPipeError:
        # The reader has gone (`| head`): nothing is wrong, and nothing can be said. Python flushes stdout once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as problem:
        say_unexpected(problem, verbose="--verbose" in words)
        return 1


def dispatch(words: Sequence[str]) -> int:
    """Find the command that the first words name, and run it on the rest."""
    if not words or words[0] in HELP:
        from peftkit.cli.help import show_commands

        show_commands({name: text for name, (_, text) in COMMANDS.items()})
        return 0
    if words[0] == "--version":
        words = ["version"]
    for name, (module, _) in COMMANDS.items():
        parts = name.split()
        if list(words[: len(parts)]) == parts:
            with uncollected():
                command = import_module(f"peftkit.cli.{module}")
            run = getattr(command, parts[-1], None) or command.run
            return int(run(list(words[len(parts) :])))
    asked = " ".join(words[:2]) if words[0] == "data" else words[0]
    raise ConfigError(
        f"peftkit has no command {asked!r}{did_you_mean(asked, COMMANDS)}; there are: {', '.join(COMMANDS)}"
    )
