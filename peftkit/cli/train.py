"""`peftkit train`: settings -> one training."""

from __future__ import annotations

import gc
import os

from peftkit.config.read import chosen, read
from peftkit.lazy import uncollected


def run(words: list[str]) -> int:
    """Read the settings; then train, or with `--dry-run` show what would be done."""
    if {"--help", "-h"} & set(words):
        from peftkit.cli.help import show_settings

        if os.environ.get("RANK", "0") == "0":
            show_settings(chosen([word for word in words if word not in ("--help", "-h")]))
        return 0
    settings = read([word for word in words if word != "--dry-run"])
    from peftkit.tracking.quiet import chatter_to

    with chatter_to(None, settings.verbose), uncollected():  # libraries speak while they are imported, too
        from peftkit.flows.train import dry_run, train
    gc.freeze()  # what is there by now stays: no collection needs to look through it again
    if "--dry-run" in words:
        dry_run(settings)
    else:
        train(settings)
    return 0
