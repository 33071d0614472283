"""R5: damaged and hostile model files.

Passes if: each ends in a typed error (exit code 3, no traceback) that names the file, and the
tensor where there is one, in under a second and with at most 200 MB more memory; nothing outside
the model's folder is read, and no pickle is executed.
"""

from __future__ import annotations

import os
import pickle
import resource
import time
from pathlib import Path

import pytest
import torch
from damaged_models import DAMAGED, FOLDERS, good
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from evomerge.checkpoints.headers import read_header
from evomerge.checkpoints.open import open_checkpoint
from evomerge.errors import ModelError


@pytest.mark.parametrize("case", DAMAGED)
@pytest.mark.parametrize("inside_folder", [False, True], ids=["file", "folder"])
def test_a_damaged_file_is_named(tmp_path: Path, case: str, inside_folder: bool) -> None:
    content, word = DAMAGED[case]
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    with pytest.raises(ModelError) as caught:
        open_checkpoint(tmp_path if inside_folder else path, name="expert")
    assert time.perf_counter() - start < 1.0
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kB
    assert "model.safetensors" in str(caught.value)
    assert word in str(caught.value)
    assert caught.value.__cause__ is None


def test_the_undamaged_file_opens(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(good())
    assert open_checkpoint(tmp_path, name="x").names == ("a", "b")


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_nothing_that_safetensors_refuses_is_read(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """The oracle is safetensors' own parser; ours may only be the stricter one."""
    content = bytearray(good())
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, len(content) - 1))
        content[position] = data.draw(st.sampled_from(b'0123456789"[]{},:FB\x00\xff '))
    path = tmp_path_factory.getbasetemp() / "fuzzed.safetensors"
    path.write_bytes(bytes(content))
    try:
        ours = read_header(path)
    except ModelError:
        return
    try:
        with safe_open(path, framework="pt") as theirs:
            assert set(theirs.keys()) == set(ours)
            for name, found in ours.items():
                assert tuple(theirs.get_tensor(name).shape) == found.shape
    except SafetensorError as error:  # pragma: no cover
        raise AssertionError("we read what safetensors refuses") from error


# --- folders -----------------------------------------------------------------------------------


@pytest.mark.parametrize("case", FOLDERS)
def test_a_damaged_folder_is_named(tmp_path: Path, case: str) -> None:
    make, word = FOLDERS[case]
    folder = tmp_path / "expert"
    make(folder)
    start = time.perf_counter()
    with pytest.raises(ModelError) as caught:
        open_checkpoint(folder, name="x")
    assert time.perf_counter() - start < 1.0
    assert "expert" in str(caught.value)
    assert word in str(caught.value)


def test_the_hub_cache_may_link_to_its_blobs(tmp_path: Path) -> None:
    repository = tmp_path / "models--org--name"
    snapshot = repository / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    save_file({"a": torch.ones(2)}, repository / "blobs" / "0123")
    (snapshot / "model.safetensors").symlink_to("../../blobs/0123")
    assert open_checkpoint(snapshot, name="x").names == ("a",)


def test_a_missing_folder_names_its_nearest_sibling(tmp_path: Path) -> None:
    (tmp_path / "math-expert").mkdir()
    with pytest.raises(ModelError, match="did you mean 'math-expert'"):
        open_checkpoint(tmp_path / "maths-expert", name="x")


# --- pickles -----------------------------------------------------------------------------------


class Bomb:
    def __init__(self, mark: Path) -> None:
        self.mark = str(mark)

    def __reduce__(self) -> tuple[object, ...]:
        return (os.mkdir, (self.mark,))


@pytest.mark.parametrize("allow", [False, True])
def test_no_pickle_is_executed(tmp_path: Path, allow: bool) -> None:
    mark = tmp_path / "executed"
    torch.save({"a": Bomb(mark)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"pytorch_model\.bin"):
        open_checkpoint(tmp_path, name="x", allow_pickle=allow)
    assert not mark.exists()
    raw = tmp_path / "raw.bin"
    raw.write_bytes(pickle.dumps(Bomb(mark)))
    with pytest.raises(ModelError, match=r"raw\.bin"):
        open_checkpoint(raw, name="x", allow_pickle=allow)
    assert not mark.exists()


def test_a_pickle_is_refused_with_the_way_to_allow_it(tmp_path: Path) -> None:
    torch.save({"a": torch.arange(3.0)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelError, match="allow_pickle_weights"):
        open_checkpoint(tmp_path, name="x")
    allowed = open_checkpoint(tmp_path, name="x", allow_pickle=True)
    assert torch.equal(allowed.tensor("a"), torch.arange(3.0))


@pytest.mark.parametrize("content", [{"a": torch.ones(1), "step": 3}, [1], torch.ones(1)])
def test_a_pickle_of_something_else_is_refused(tmp_path: Path, content: object) -> None:
    path = tmp_path / "x.pt"
    torch.save(content, path)
    with pytest.raises(ModelError, match=r"x\.pt"):
        open_checkpoint(path, name="x", allow_pickle=True)
