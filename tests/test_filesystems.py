"""What a ledger's journal is on which disk, by a mount table of our own."""

from __future__ import annotations

import shutil
from contextlib import closing
from pathlib import Path

import pytest

from evomerge import filesystems
from evomerge.errors import ConfigurationError
from evomerge.filesystems import is_network, journal_mode, kind_of
from evomerge.ledger import Ledger

ROLLBACK, WRITE_AHEAD = b"\1\1", b"\2\2"  # bytes 18 and 19: https://www.sqlite.org/fileformat.html


@pytest.fixture
def mounts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Write the mount table: place -> type, in the order of mounting."""
    monkeypatch.delenv(filesystems.VARIABLE, raising=False)
    monkeypatch.setattr(filesystems, "MOUNTS", tmp_path / "mountinfo")

    def write(*table: tuple[Path | str, str], optional: str = "shared:1") -> None:
        lines = [
            f"{n + 20} 1 0:{n} / {str(place).replace(' ', chr(92) + '040')} rw,relatime {optional}"
            f"{' ' if optional else ''}- {kind} source:/x rw"
            for n, (place, kind) in enumerate(table)
        ]
        (tmp_path / "mountinfo").write_text("\n".join(lines) + "\n")

    return write


@pytest.mark.parametrize(
    ("kind", "network"),
    [
        *((kind, False) for kind in ("ext4", "xfs", "btrfs", "zfs", "tmpfs", "overlay", "apfs")),
        *((kind, False) for kind in ("fuseblk", "f2fs", "erofs", "ramfs", "unheard_of")),
        *((kind, True) for kind in ("nfs", "nfs4", "cifs", "smb3", "smbfs", "lustre", "gpfs")),
        *((kind, True) for kind in ("fuse.sshfs", "fuse.s3fs", "fuse", "9p", "ceph", "beegfs")),
        *((kind, True) for kind in ("beegfs_nodev", "virtiofs", "glusterfs", "afs", "wekafs")),
    ],
)
def test_what_is_another_machines(kind, network, mounts, tmp_path):
    mounts(("/", "ext4"), (tmp_path, kind))
    assert kind_of(tmp_path / "runs" / "x") == kind
    assert is_network(tmp_path / "runs" / "x") == network
    assert journal_mode(tmp_path) == ("TRUNCATE" if network else "WAL")
    assert not is_network(tmp_path.parent)


def test_the_innermost_mount_counts_and_of_equal_ones_the_last(mounts, tmp_path):
    spaced, alike = tmp_path / "my disk", tmp_path / "my diskette"
    mounts((spaced, "nfs4"), ("/", "ext4"), (tmp_path, "xfs"), (spaced / "in", "tmpfs"))
    assert [kind_of(p) for p in (spaced, spaced / "a", alike)] == ["nfs4", "nfs4", "xfs"]
    assert kind_of(spaced / "in" / "a") == "tmpfs"
    mounts(("/", "ext4"), (spaced, "xfs"), (spaced, "nfs4"), optional="")
    assert kind_of(spaced) == "nfs4"
    spaced.mkdir()
    (tmp_path / "link").symlink_to(spaced)
    assert is_network(tmp_path / "link" / "run")


def test_who_is_told_nothing_takes_it_for_local(mounts, tmp_path):
    assert kind_of(tmp_path) == ""  # no table at all
    assert journal_mode(tmp_path) == "WAL"
    filesystems.MOUNTS.write_text("nonsense\n1 2 3\n - \n")
    assert journal_mode(tmp_path) == "WAL"


def test_the_environment_wins(mounts, tmp_path, monkeypatch):
    mounts(("/", "nfs4"))
    for said, mode in (("wal", "WAL"), ("TRUNCATE", "TRUNCATE"), ("auto", "TRUNCATE")):
        monkeypatch.setenv(filesystems.VARIABLE, said)
        assert journal_mode(tmp_path) == mode
    monkeypatch.setenv(filesystems.VARIABLE, "wall")
    with pytest.raises(ConfigurationError, match=r"EVOMERGE_JOURNAL.*did you mean 'wal'"):
        journal_mode(tmp_path)


def header(path: Path) -> bytes:
    return path.read_bytes()[18:20]


def test_a_ledger_that_is_moved_changes_over(mounts, tmp_path):
    """To a network disk and back; what was committed is there."""
    path = tmp_path / "ledger.sqlite"
    mounts(("/", "ext4"))
    with closing(Ledger.create(path, {"identity": {}}, {"t": 3})) as ledger:
        ledger.note("session", {"number": 0})
        assert sorted(p.suffix for p in tmp_path.glob("ledger*")) == [
            ".sqlite",
            ".sqlite-shm",
            ".sqlite-wal",
        ]
    assert header(path) == WRITE_AHEAD
    for number, (kind, found) in enumerate((("nfs4", ROLLBACK), ("ext4", WRITE_AHEAD)), start=1):
        mounts(("/", kind))
        with closing(Ledger(path)) as ledger:
            assert header(path) == found
            ledger.note("session", {"number": number})
        assert not list(tmp_path.glob("ledger*-wal"))
        with closing(Ledger(path, read_only=True)) as ledger:
            assert [d["number"] for _, _, d in ledger.events("session")] == [*range(number + 1)]


def test_a_killed_drivers_log_is_read_before_the_ledger_changes_over(mounts, tmp_path):
    path, moved = tmp_path / "ledger.sqlite", tmp_path / "moved" / "ledger.sqlite"
    moved.parent.mkdir()
    mounts((tmp_path, "ext4"), (moved.parent, "nfs4"))
    with closing(Ledger.create(path, {"identity": {}}, {"t": 3})) as ledger:
        ledger.note("session", {"number": 7})
        for name in ("ledger.sqlite", "ledger.sqlite-wal"):  # as a kill leaves them
            shutil.copy(path.with_name(name), moved.with_name(name))
    with closing(Ledger(moved)) as ledger:
        assert [data["number"] for _, _, data in ledger.events("session")] == [7]
        assert header(moved) == ROLLBACK


def test_no_log_is_begun_on_a_network_disk(mounts, tmp_path):
    mounts(("/", "fuse.sshfs"))
    with closing(Ledger.create(tmp_path / "ledger.sqlite", {"identity": {}}, {"t": 3})) as ledger:
        ledger.note("session", {})
        assert not list(tmp_path.glob("*-wal"))
        assert not list(tmp_path.glob("*-shm"))
        with closing(Ledger(ledger.path, read_only=True)) as reader:
            ledger.note("session", {})  # a reader that rests is in nobody's way
            assert len(list(reader.events("session"))) == 1
