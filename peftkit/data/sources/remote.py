"""Files of any file system that fsspec knows (https://, s3://, gs://, memory://, ...), fetched once into the cache."""

from __future__ import annotations

import hashlib
import json
import re
from functools import partial
from glob import escape
from pathlib import Path, PurePosixPath
from typing import Any

from peftkit.cache import once
from peftkit.errors import DataError
from peftkit.redact import HIDDEN, redact

URL = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*://")
VERSIONS = (
    "ETag",
    "etag",
    "Content-MD5",
    "Last-Modified",
    "LastModified",
    "mtime",
    "created",
    "updated",
    "md5Hash",
    "size",
)
"""What the file systems say of a file that another content would change."""


def fetch(url: str, root: Path) -> dict[str, Path]:
    """The files that `url` names (several with a *) -> local copies, each fetched anew when the remote one changes."""
    system, path = _system(url)
    if "*" not in PurePosixPath(path).name:
        return {path: _copy(system, path, url, root)}
    try:
        found = sorted(str(each) for each in system.glob(path))
    except Exception as problem:  # each file system raises its own
        raise DataError(f"{shown(url)} cannot be listed: {_reason(problem, url)}") from None
    if not found:
        raise DataError(f"{shown(url)} matches no file")
    return {each: _copy(system, each, f"{url} {each}", root) for each in found}


def shown(url: str) -> str:
    """Without what may be secret: a password, a signature."""
    return re.sub(r"//[^/@]*@", "//", url.split("?")[0])


def _system(url: str) -> tuple[Any, str]:
    from fsspec.core import url_to_fs

    try:
        system, path = url_to_fs(url, **_options(url))
    except ImportError as problem:
        raise DataError(f"{shown(url)} needs {_package(url, problem)}") from None
    except Exception as problem:  # of the file system: a protocol that is unknown, no credentials
        raise DataError(f"{shown(url)} cannot be opened: {_reason(problem, url)}") from None
    return system, path


def _options(url: str) -> dict[str, Any]:
    """For the web: the environment's proxies, and no limit on a whole download (aiohttp's is five minutes)."""
    if not url.startswith(("http://", "https://")):
        return {}
    from aiohttp import ClientTimeout

    return {"client_kwargs": {"trust_env": True, "timeout": ClientTimeout(total=None, sock_connect=30, sock_read=120)}}


def _package(url: str, problem: ImportError) -> str:
    from fsspec.registry import known_implementations

    home = known_implementations.get(url.split(":")[0], {}).get("class", "").split(".")[0]
    missing = getattr(problem.__cause__ or problem, "name", None) or home
    name = (home if home != "fsspec" else missing) or "of its file system"
    return f"the package {name}: pip install {name}"


def _copy(system: Any, path: str, url: str, root: Path) -> Path:
    name = PurePosixPath(path.split("?")[0]).name or "data"
    home = root / "downloads" / hashlib.sha256(redact(url).encode()).hexdigest()[:32]
    if HIDDEN in url:  # a run's own settings, in which no secret is written
        if kept := _kept(home, name):
            return kept
        raise DataError(
            f"{shown(url)} needs the secret that was left out of the run's settings, and no copy of it is in the cache;"
            " give the whole address again (--data.train ...)"
        )
    try:
        info = system.info(path)
    except Exception as problem:
        kept = _kept(home, name)
        if kept and not _refused(problem):
            return kept  # without a network, what was fetched before serves
        raise DataError(f"{shown(url)} cannot be fetched: {_reason(problem, url)}") from None
    if info.get("type") == "directory":
        raise DataError(f"{shown(url)} is a folder; name a file in it, or several: {shown(url).rstrip('/')}/*.SUFFIX")
    version = json.dumps({key: info[key] for key in VERSIONS if key in info}, default=str, sort_keys=True)
    target = home / hashlib.sha256(version.encode()).hexdigest()[:32]
    once(
        target, partial(_download, system, path, url, name, info.get("size")), lambda folder: (folder / name).is_file()
    )
    return target / name


def _kept(home: Path, name: str) -> Path | None:
    """What was fetched last."""
    return max(home.glob("*/" + escape(name)), key=lambda file: file.stat().st_mtime, default=None)


def _download(system: Any, path: str, url: str, name: str, size: int | None, folder: Path) -> None:
    try:
        system.get_file(path, str(folder / name))
    except Exception as problem:
        raise DataError(f"{shown(url)} cannot be fetched: {_reason(problem, url)}") from None
    got = (folder / name).stat().st_size
    if size is not None and got != size:
        raise DataError(f"{shown(url)} broke off: {got:,} of {size:,} bytes came; try again")


def _refused(problem: Exception) -> bool:
    """Whether the other side answered: the file is not there, or not for us."""
    problem = _cause(problem)
    return hasattr(problem, "status") or isinstance(problem, (FileNotFoundError, PermissionError))


def _reason(problem: Exception, url: str) -> str:
    problem = _cause(problem)
    status = getattr(problem, "status", None)
    if isinstance(problem, FileNotFoundError) or status == 404:
        return "it is not there"
    if isinstance(problem, PermissionError):
        return "access is denied; give this place's credentials as its package expects them"
    if status is not None:
        return f"the server answers {status}"
    return (str(problem).splitlines() or [type(problem).__name__])[0].replace(url, shown(url))


def _cause(problem: Exception) -> Exception:
    """fsspec says of everything on the web that it is not found, and keeps the reason behind it."""
    behind = problem.__cause__
    return behind if isinstance(problem, FileNotFoundError) and isinstance(behind, Exception) else problem
