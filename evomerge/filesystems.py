"""Which disks are other machines': SQLite's write-ahead log wants a disk of this one.

The log is indexed in memory that all its readers share, which no network file system can give
(https://www.sqlite.org/wal.html, "Disadvantages"). There the ledger keeps a rollback journal, which
costs a few more syncs for each commit. Linux tells what a path lies on; elsewhere, and where
nothing is known, a disk counts as local.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from evomerge.errors import ConfigurationError, Problem, nearest

JournalMode = Literal["WAL", "TRUNCATE"]

MOUNTS = Path("/proc/self/mountinfo")
VARIABLE = "EVOMERGE_JOURNAL"
CHOICES: dict[str, JournalMode] = {"wal": "WAL", "truncate": "TRUNCATE"}
# Of FUSE nothing is known but that it is a program: sshfs, s3fs, gcsfuse, glusterfs, juicefs, ...
NETWORK = re.compile(
    r"nfs\d?|cifs|smb\w*|afs|ncpfs|lustre\w*|gpfs|mmfs|fuse|fuse\..+|9p|virtiofs|ceph|beegfs\w*"
    r"|glusterfs|pvfs2|orangefs|panfs|wekafs|weka|quobyte|davfs|coda|ocfs2|gfs2|acfs|vboxsf"
    r"|prl_fs|vmhgfs|drvfs|efs|hdfs|moosefs|lizardfs|cvmfs2?|dfs|stornext|cvfs"
)


def journal_mode(path: Path) -> JournalMode:
    """How SQLite is to keep a file of this path; the environment's EVOMERGE_JOURNAL wins.

    Raises:
        ConfigurationError: it says something else than `wal`, `truncate` or `auto`.
    """
    chosen = os.environ.get(VARIABLE, "").lower()
    if chosen in CHOICES:
        return CHOICES[chosen]
    if chosen not in ("", "auto"):
        hint = nearest(chosen, [*CHOICES, "auto"])
        raise ConfigurationError(Problem(f"${VARIABLE}", f"got {chosen!r}", hint))
    return "TRUNCATE" if is_network(path) else "WAL"


def is_network(path: Path) -> bool:
    """Whether a path, which need not exist, lies on another machine's disk, as far as is known."""
    return NETWORK.fullmatch(kind_of(path).lower()) is not None


def kind_of(path: Path) -> str:
    """The type of the file system that a path lies on, such as `ext4`; "" where nobody says."""
    real, found, longest = Path(os.path.realpath(path)), "", -1
    for place, kind in _mounts():
        # The last of equal ones is the one that is seen.
        if len(place.parts) >= longest and (place == real or place in real.parents):
            found, longest = kind, len(place.parts)
    return found


def _mounts() -> Iterator[tuple[Path, str]]:
    """Where each file system is mounted, and its type: proc(5), /proc/pid/mountinfo."""
    try:
        lines = MOUNTS.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return
    for line in lines:
        fields, _, rest = line.partition(" - ")
        parts, kind = fields.split(" "), rest.split(" ")[0]
        if len(parts) > 4 and kind:
            yield Path(re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8)), parts[4])), kind
