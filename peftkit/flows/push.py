"""`peftkit push FOLDER ORG/NAME`: an export onto the hub, file for file as it was certified, or not at all."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants, get_token
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled, RepositoryNotFoundError
from huggingface_hub.hf_api import ModelInfo, RepoSibling
from rich.table import Table
from rich.text import Text

from peftkit.engine.space import size
from peftkit.errors import ConfigError, ExportError, PeftkitError
from peftkit.evaluation.certificate import CARD, CERTIFICATE, Certificate, files_of, sha256
from peftkit.exporters.metadata import is_hub_name
from peftkit.redact import redact_setting, secrets
from peftkit.tracking.console import Console

OURS = (CARD, CERTIFICATE, "peftkit.json", "config.json", "generation_config.json", "adapter_config.json")
"""Files in which whatever looks like a secret is one; in others (a vocabulary) only those that this process knows."""
TEXTS = (".json", ".md", ".jinja", ".txt", ".svg", ".yaml", ".xml")
OF_THE_HUB = (".gitattributes",)
"""What the hub itself puts into a new repository."""
MESSAGE = "An export of peftkit"


@dataclass(frozen=True)
class Asked:
    """What goes where."""

    folder: Path
    repo: str
    """`ORG/NAME`."""
    public: bool = False
    dry_run: bool = False
    force: bool = False
    """Also a folder without a certificate."""
    replace: bool = False
    """Take away what else lies in the repository."""


def push(asked: Asked, console: Console | None = None) -> str:
    """Upload the export in one commit, and check what then lies there; returns its address (empty: a dry run).

    Raises ConfigError for a name, a token or a repository that will not do, ExportError for a folder that is not what was
    certified, PeftkitError for what the hub refuses.
    """
    console = console or Console()
    check_name(asked.repo)
    files = checked_files(asked.folder, asked.force, console)
    endpoint = os.environ.get("HF_ENDPOINT", constants.ENDPOINT).rstrip("/")
    address = f"{endpoint}/{asked.repo}"
    if asked.dry_run:
        console.show(listed(asked.folder, files))
        kind = "public" if asked.public else "private"
        console.note(f"a dry run: nothing was sent. It would go to {address}, made {kind} if it is not there yet")
        return ""
    token = wanted_token()
    check_secrets(asked.folder, files, token)
    with told(asked.repo, endpoint, token):
        api = HfApi(endpoint=endpoint, token=token)
        there = found(api, asked.repo)
        strange = check_there(there, asked, files)
        if there is None:
            api.create_repo(asked.repo, private=not asked.public, repo_type="model")
            console.note(f"made {address}, {'public' if asked.public else 'private'}")
        additions = [CommitOperationAdd(name, asked.folder / name) for name in files]
        deletions = [CommitOperationDelete(name) for name in strange]
        done = api.create_commit(
            asked.repo,
            [*additions, *deletions],
            commit_message=MESSAGE,
            parent_commit=there.sha if there else None,
        )
        check_arrived(api, asked, files, done.oid)
    total = sum((asked.folder / name).stat().st_size for name in files)
    console.note(f"{len(files)} files, {size(total)}, lie at {address} as they were certified")
    return address


def check_name(repo: str) -> None:
    if repo.count("/") != 1 or not is_hub_name(repo):
        raise ConfigError(f"{repo!r} is no name on the hub: ORG/NAME, of letters, digits, and -, _ or . between them")


def checked_files(folder: Path, force: bool, console: Console) -> dict[str, str]:
    """The files that make the export, with their sha256: those that the certificate names, unchanged, and itself."""
    if not folder.is_dir():
        raise ConfigError(f"{folder} is no folder; name RUN/export/NAME")
    if folder.name.endswith(".partial"):
        raise ExportError(f"{folder} is an export that was never finished")
    links = sorted(path for path in folder.rglob("*") if path.is_symlink())
    if links:
        raise ExportError(
            f"{links[0]} is a link: what it leads to is not part of the export; put the file in its place"
        )
    if not (folder / CERTIFICATE).is_file():
        if not force:
            raise ExportError(
                f"{folder} has no {CERTIFICATE}: nobody has compared it with what was trained. Export the run, or say --force"
            )
        console.warn(f"{folder} has no certificate; it is uploaded because of --force")
        return files_of(folder)
    certificate = Certificate.read(folder)
    if certificate.format < 2 and not force:
        raise ExportError(
            f"{folder} has a certificate of an older peftkit, which names its weights alone; export the run again, or say --force"
        )
    if certificate.forced:
        console.warn(f"this is not the model that was trained, and its card says so: {'; '.join(certificate.missed)}")
    files = files_of(folder) if certificate.format < 2 else {**certificate.files, **card_of(folder)}
    return {**files, CERTIFICATE: sha256(folder / CERTIFICATE)}


def card_of(folder: Path) -> dict[str, str]:
    """The card as it is now: people may write into it."""
    return {CARD: sha256(folder / CARD)} if (folder / CARD).is_file() else {}


def wanted_token() -> str:
    """From HF_TOKEN, or from the hub's own login."""
    if constants.is_offline_mode():
        raise ConfigError("HF_HUB_OFFLINE is set, so the hub is not asked for anything; unset it to push")
    token = get_token()
    if not token:
        raise ConfigError(
            "no token of the hub: set HF_TOKEN, or log in with `hf auth login`; it needs the right to write"
        )
    return token


def check_secrets(folder: Path, files: Mapping[str, str], token: str) -> None:
    """ExportError for a text that holds a secret: what is uploaded cannot be called back."""
    known = [token, *secrets()]
    for name in files:
        if not name.endswith(TEXTS):
            continue
        text = (folder / name).read_text(encoding="utf-8", errors="replace")
        if any(secret in text for secret in known) or (name in OURS and redact_setting(text) != text):
            raise ExportError(
                f"{folder / name} holds what looks like a token or a password; take it out, and export again"
            )


def found(api: HfApi, repo: str) -> ModelInfo | None:
    """The repository, if it is there for this token."""
    try:
        return api.model_info(repo)
    except RepositoryNotFoundError as problem:
        if problem.response is not None and problem.response.status_code == 404:
            return None
        raise


def check_there(there: ModelInfo | None, asked: Asked, files: Mapping[str, str]) -> list[str]:
    """The other files in the repository, if they may go; ConfigError if it is not one for this export."""
    if there is None:
        return []
    if not there.private and not asked.public:
        raise ConfigError(f"{asked.repo} is there and public; say --public if everybody may read this model")
    names = {one.rfilename for one in there.siblings or ()}
    strange = sorted(names - files.keys() - set(OF_THE_HUB))
    if strange and not asked.replace:
        more = f" and {len(strange) - 1} more" if len(strange) > 1 else ""
        raise ConfigError(
            f"{asked.repo} holds other files ({strange[0]}{more}), beside which this model would be another one;"
            " name a new repository, or say --replace, which takes them away"
        )
    return strange


def check_arrived(api: HfApi, asked: Asked, files: Mapping[str, str], commit: str) -> None:
    """PeftkitError if what lies there is not what was sent: a .gitignore there may have left a file out without a word."""
    there = api.model_info(asked.repo, revision=commit, files_metadata=True)
    siblings = {one.rfilename: one for one in there.siblings or ()}
    wrong = [name for name, digest in files.items() if not is_it(siblings.get(name), asked.folder / name, digest)]
    if wrong:
        raise PeftkitError(
            f"{asked.repo} does not hold {', '.join(wrong[:5])} as they were sent; look at it before anybody uses it"
        )


def is_it(there: RepoSibling | None, file: Path, digest: str) -> bool:
    """By its sha256 where it is stored apart, else by git's own hash."""
    if there is None:
        return False
    if there.lfs is not None:
        return there.lfs.sha256 == digest
    content = file.read_bytes()
    own = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
    return there.blob_id == own


WHY = {
    400: "it does not take what was sent",
    401: "it does not know the token; make a new one, or log in again",
    403: "the token may not write there; it needs the right to, and you a place in that organisation",
    404: "it has no such place for this token",
    409: "somebody else has just changed it; the same command tries again",
    413: "it is too large for it",
    429: "too many requests; the same command goes on later",
}


@contextmanager
def told(repo: str, endpoint: str, token: str) -> Iterator[None]:
    """What the hub or the network says, in a sentence, and never the token."""
    try:
        yield
    except HfHubHTTPError as problem:
        status = problem.response.status_code if problem.response is not None else 0
        why = WHY.get(status, "what was uploaded so far is not sent again by the same command")
        said = (problem.server_message or "").strip().splitlines()
        words = f" ({redact_setting(said[0][:300])})" if said else ""
        raise PeftkitError(
            f"{endpoint} refuses {repo} with {status}{words}: {why}".replace(token, "(hidden)")
        ) from None
    except (OfflineModeIsEnabled, OSError) as problem:
        raise PeftkitError(no_network(endpoint, problem, token)) from None
    except Exception as problem:
        if type(problem).__module__.partition(".")[0] not in ("httpx", "httpx2", "httpcore", "httpcore2"):
            raise
        raise PeftkitError(no_network(endpoint, problem, token)) from None


def no_network(endpoint: str, problem: Exception, token: str) -> str:
    words = redact_setting(str(problem)).replace(token, "(hidden)") or type(problem).__name__
    return (
        f"{endpoint} cannot be reached ({words}); check the network, and HF_ENDPOINT if you use another hub;"
        " what was uploaded so far is not sent again by the same command"
    )


def listed(folder: Path, files: Mapping[str, str]) -> Table:
    """Every file with its size and hash."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    for name in ("file", "size", "sha256"):
        table.add_column(name, justify="right" if name == "size" else "left")
    total = 0
    for name, digest in sorted(files.items()):
        bytes_ = (folder / name).stat().st_size
        total += bytes_
        table.add_row(Text(name), size(bytes_), digest[:16])
    table.add_row(f"{len(files)} files", size(total), "")
    return table
