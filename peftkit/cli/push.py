"""`peftkit push FOLDER ORG/NAME`: an export onto the hub."""

from __future__ import annotations

from pathlib import Path

from peftkit.cli.words import Parser

TOLD = (
    "Upload an export to the Hugging Face hub (or to what HF_ENDPOINT names), in one commit, if its files are those that were"
    " certified. The token is HF_TOKEN's, or that of `hf auth login`; it is no flag, so that no shell remembers it."
)


def run(words: list[str]) -> int:
    """Check, list or upload."""
    parser = Parser("push", TOLD)
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="the export: RUN/export/NAME")
    parser.add_argument("repo", metavar="ORG/NAME", help="where it goes; made if it is not there")
    parser.add_argument("--public", action="store_true", help="everybody may read it (default: private)")
    parser.add_argument("--dry-run", "--dry_run", action="store_true", help="list what would be sent, and send nothing")
    parser.add_argument("--replace", action="store_true", help="take away other files that lie in the repository")
    parser.add_argument("--force", action="store_true", help="also a folder without a certificate; never a changed one")
    asked = parser.read(words)
    if asked is None:
        return 0
    from peftkit.flows.push import Asked, push

    push(Asked(asked.folder, asked.repo, asked.public, asked.dry_run, asked.force, asked.replace))
    return 0
