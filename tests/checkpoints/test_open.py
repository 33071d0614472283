from __future__ import annotations

import json
import os
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from evomerge.checkpoints.open import Checkpoint, open_checkpoint
from evomerge.checkpoints.preflight import check_finite
from evomerge.errors import ModelError

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.bool)


def state() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    made = {
        f"layers.{i}.{str(dtype).removeprefix('torch.')}": torch.randint(
            0, 2, (3, 5), generator=generator
        ).to(dtype)
        for i, dtype in enumerate(DTYPES)
    }
    return made | {"scalar": torch.tensor(2.5), "nothing": torch.zeros(0, 4)}


def write_sharded(folder: Path, tensors: dict[str, torch.Tensor]) -> Path:
    folder.mkdir()
    weight_map = {}
    for i, name in enumerate(tensors):
        weight_map[name] = f"s{i % 3}.safetensors"
    for shard in set(weight_map.values()):
        part = {name: t for name, t in tensors.items() if weight_map[name] == shard}
        save_file(part, folder / shard)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


def forms(tmp_path: Path) -> dict[str, Checkpoint]:
    """One model in every form that can be opened."""
    tensors = state()
    save_file(tensors, tmp_path / "file.safetensors")
    (tmp_path / "single").mkdir()
    save_file(tensors, tmp_path / "single" / "model.safetensors")
    write_sharded(tmp_path / "sharded", tensors)
    torch.save(tensors, tmp_path / "file.pt")
    torch.save({"state_dict": tensors}, tmp_path / "old.bin", _use_new_zipfile_serialization=False)
    sources = ("file.safetensors", "single", "sharded", "file.pt", "old.bin")
    opened = {
        name: open_checkpoint(tmp_path / name, name=name, allow_pickle=True) for name in sources
    }
    return opened | {"memory": open_checkpoint(tensors, name="memory")}


def test_every_form_has_the_same_tensors_and_the_same_hash(tmp_path: Path) -> None:
    tensors = state()
    opened = forms(tmp_path)
    for form, checkpoint in opened.items():
        assert checkpoint.names == tuple(sorted(tensors)), form
        for name, tensor in tensors.items():
            assert checkpoint.shape(name) == tuple(tensor.shape)
            assert checkpoint.dtype(name) == tensor.dtype
            assert torch.equal(checkpoint.tensor(name), tensor)
        assert checkpoint.size_bytes == sum(t.nbytes for t in tensors.values())
    assert len({checkpoint.sha256() for checkpoint in opened.values()}) == 1


@pytest.mark.parametrize("change", ["name", "value", "dtype", "shape"])
def test_the_hash_sees_every_change(change: str) -> None:
    before = {"a": torch.arange(6, dtype=torch.int32), "b": torch.zeros(2)}
    after = {
        "name": {"a": before["a"], "c": before["b"]},
        "value": {"a": before["a"].flip(0), "b": before["b"]},
        "dtype": {"a": before["a"].view(torch.float32), "b": before["b"]},
        "shape": {"a": before["a"].view(2, 3), "b": before["b"]},
    }[change]
    hashes = {open_checkpoint(s, name="x").sha256() for s in (before, after)}
    assert len(hashes) == 2


def test_tensors_are_mapped_and_private(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    save_file({"a": torch.ones(1000)}, path)
    before = path.read_bytes()
    checkpoint = open_checkpoint(path, name="x")
    first, second = checkpoint.tensor("a"), checkpoint.tensor("a")
    assert first.data_ptr() == second.data_ptr()  # one mapping, no copy
    first.zero_()
    checkpoint.close()
    assert path.read_bytes() == before
    assert float(first.sum()) == 0  # outlives the checkpoint
    assert float(checkpoint.tensor("a").sum()) == 1000  # mapped afresh


def test_unaligned_data_is_read(tmp_path: Path) -> None:
    values = torch.arange(4, dtype=torch.float32)
    header = {"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}
    text = json.dumps(header).encode()
    text += b" " * (-(8 + len(text)) % 4 + 1)
    path = tmp_path / "m.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + values.numpy().tobytes())
    assert torch.equal(open_checkpoint(path, name="x").tensor("a"), values)


def test_an_unknown_tensor_has_a_hint() -> None:
    checkpoint = open_checkpoint({"layer.weight": torch.ones(1)}, name="x")
    with pytest.raises(ModelError, match=r"did you mean 'layer\.weight'"):
        checkpoint.tensor("layer.weigth")


def test_a_file_that_changes_is_not_mapped(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    save_file({"a": torch.ones(4)}, path)
    checkpoint = open_checkpoint(path, name="x")
    save_file({"a": torch.zeros(4), "b": torch.ones(1)}, path)
    with pytest.raises(ModelError, match="has changed"):
        checkpoint.tensor("a")


def test_a_state_dict_holds_tensors_only() -> None:
    with pytest.raises(ModelError, match="'b'"):
        open_checkpoint({"a": torch.ones(1), "b": 3}, name="x")  # type: ignore[dict-item]


@pytest.mark.parametrize(
    ("config", "tied"),
    [
        ({"tie_word_embeddings": False}, False),
        ({"tie_word_embeddings": True}, True),
        ({"model_type": "gpt2"}, True),  # transformers 4 leaves its default out
        ({"text_config": {"tie_word_embeddings": False}}, False),
    ],
)
def test_tied(tmp_path: Path, config: dict[str, object], tied: bool) -> None:
    save_file({"a": torch.ones(1)}, tmp_path / "model.safetensors")
    assert not open_checkpoint(tmp_path, name="x").tied
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert open_checkpoint(tmp_path, name="x").tied is tied


# --- one reading gives the checksum and the verdict ---------------------------------------------


def test_the_checksum_is_computed_once_for_a_file_state(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    save_file({"a": torch.ones(1000)}, path)
    calls: list[tuple[int, int]] = []
    first = open_checkpoint(path, name="x").sha256(lambda *c: calls.append(c))
    assert calls == [(4000, 4000)]
    again = open_checkpoint(path, name="y")
    assert again.sha256(lambda *c: calls.append(c)) == first
    check_finite(again, lambda *c: calls.append(c))
    assert len(calls) == 1
    info = path.stat()
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))
    os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns))  # the same size, the same time
    assert open_checkpoint(path, name="z").sha256() != first


@pytest.mark.parametrize("damage", [b"", b"{}", b"[1]", b'{"format": 1, "files": 3}'])
def test_a_damaged_cache_costs_a_reading(tmp_path: Path, own_cache: Path, damage: bytes) -> None:
    path = tmp_path / "m.safetensors"
    save_file({"a": torch.ones(10)}, path)
    first = open_checkpoint(path, name="x").sha256()
    (cached,) = (own_cache / "checksums").iterdir()
    cached.write_bytes(damage)
    assert open_checkpoint(path, name="x").sha256() == first


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.float8_e5m2]
)
def test_not_finite_is_named(tmp_path: Path, bad: float, dtype: torch.dtype) -> None:
    values = torch.zeros(9, 7)
    values[4, 3] = bad
    path = tmp_path / "m.safetensors"
    save_file({"bad": values.to(dtype), "good": torch.ones(3), "whole": torch.arange(3)}, path)
    for _ in range(2):  # the second verdict comes from the cache
        with pytest.raises(ModelError, match="'bad'") as caught:
            check_finite(open_checkpoint(path, name="x"))
        assert "good" not in str(caught.value)
