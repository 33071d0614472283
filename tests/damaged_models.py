"""Damaged and hostile model files and folders, with a word that the message must have."""

from __future__ import annotations

import json
import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file

from evomerge.checkpoints.headers import MAX_HEADER_BYTES


def pack(header: object, data: bytes = b"", *, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(start: int, stop: int, shape: object = None, dtype: object = "F32") -> dict[str, object]:
    shape = [(stop - start) // 4] if shape is None else shape
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


def good() -> bytes:
    return pack({"a": entry(0, 8), "b": entry(8, 16)}, bytes(16))


# --- one file: contents, and a word that the message must have --------------------------------

DAMAGED: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "cut off"),
    "4 bytes": (bytes(4), "cut off"),
    "8 bytes of zero": (bytes(8), "JSON"),
    "8 bytes, a header promised": (struct.pack("<Q", 10), "cut off"),
    "cut header": (good()[:40], "cut off"),
    "cut data": (good()[:-3], "'b'"),
    "no data": (good()[:-16], "'a'"),
    "length past the end": (pack({"a": entry(0, 4)}, bytes(4), length=5000), "cut off"),
    "length 2^63": (pack({}, length=2**63), "at most"),
    "length 2^64 - 1": (pack({}, length=2**64 - 1), "at most"),
    "length over the cap": (pack({}, length=MAX_HEADER_BYTES + 1), "at most"),
    "length too short": (pack({"a": entry(0, 4)}, bytes(4), length=9), "JSON"),
    "not JSON": (pack(b"{a: 1}"), "JSON"),
    "not UTF-8": (pack(b'{"\xff\xfe": 1}'), "JSON"),
    "half a character": (pack({"\ud800": entry(0, 4)}, bytes(4)), "JSON"),
    "a list": (pack([1, 2]), "JSON object"),
    "deep nesting": (pack(b'{"a":' + b"[" * 500_000), "JSON"),
    "many values": (pack(b'{"a":[' + b"[]," * 4_000_000 + b"0]}"), "too many"),
    "huge number": (pack(b'{"a":' + b"9" * 100_000 + b"}"), "JSON"),
    "duplicate tensor": (
        pack(
            b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},'
            b'"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}',
            bytes(8),
        ),
        "'a'",
    ),
    "duplicate field": (
        pack(b'{"a":{"dtype":"F32","dtype":"F16","shape":[1],"data_offsets":[0,4]}}', bytes(4)),
        "dtype",
    ),
    "hole": (pack({"a": entry(0, 4), "b": entry(8, 12)}, bytes(12)), "'b'"),
    "hole at the start": (pack({"a": entry(4, 8)}, bytes(8)), "'a'"),
    "overlap": (pack({"a": entry(0, 8), "b": entry(4, 12)}, bytes(12)), "overlaps"),
    "the same bytes twice": (pack({"a": entry(0, 8), "b": entry(0, 8)}, bytes(8)), "overlaps"),
    "trailing bytes": (pack({"a": entry(0, 4)}, bytes(9)), "belong to none"),
    "unknown dtype": (pack({"a": entry(0, 4, dtype="F31")}, bytes(4)), "F31"),
    "dtype no text": (pack({"a": entry(0, 4, dtype=["F32"])}, bytes(4)), "dtype"),
    "shape mismatch": (pack({"a": entry(0, 4, shape=[3])}, bytes(4)), "needs 12 bytes"),
    "negative shape": (pack({"a": entry(0, 4, shape=[-1, -1])}, bytes(4)), "shape"),
    "boolean shape": (pack({"a": entry(0, 4, shape=[True])}, bytes(4)), "shape"),
    "fractional shape": (pack({"a": entry(0, 4, shape=[1.0])}, bytes(4)), "shape"),
    "overflowing shape": (
        pack({"a": entry(0, 4, shape=[2**32, 2**32, 2**32])}, bytes(4)),
        "needs",
    ),
    "descending offsets": (pack({"a": entry(4, 0, shape=[1])}, bytes(4)), "ascending"),
    "offsets past the end": (pack({"a": entry(0, 2**62)}, bytes(4)), "ends after it, first 'a'"),
    "offsets of 2^63": (pack({"a": entry(0, 2**63)}, bytes(4)), "data_offsets"),
    "three offsets": (
        pack({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4, 8]}}, bytes(4)),
        "data_offsets",
    ),
    "field missing": (pack({"a": {"dtype": "F32", "shape": [1]}}, bytes(4)), "expected exactly"),
    "field added": (pack({"a": entry(0, 4) | {"x": 1}}, bytes(4)), "expected exactly"),
    "entry no object": (pack({"a": 5}), "'a'"),
    "200k entries": (
        pack({f"t{i}": entry(0, 0) for i in range(200_000)}),
        "100000",
    ),
    "pickle named safetensors": (pickle.dumps({"a": 1}, protocol=2) + bytes(64), "at most"),
}


# --- folders -----------------------------------------------------------------------------------


def sharded(folder: Path, weight_map: object) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def one(folder: Path, name: str = "s1.safetensors", tensor: str = "a") -> None:
    folder.mkdir(exist_ok=True)
    save_file({tensor: torch.ones(2)}, folder / name)


def missing_shard(f: Path) -> None:
    one(f)
    sharded(f, {"a": "s1.safetensors", "b": "s2.safetensors"})


def parent_shard(f: Path) -> None:
    one(f.parent, "outside.safetensors")
    sharded(f, {"a": "../outside.safetensors"})


def absolute_shard(f: Path) -> None:
    one(f.parent, "outside.safetensors")
    sharded(f, {"a": str(f.parent / "outside.safetensors")})


def nested_shard(f: Path) -> None:
    sharded(f, {"a": "sub/s1.safetensors"})


def linked_shard(f: Path) -> None:
    one(f.parent, "outside.safetensors")
    sharded(f, {"a": "s1.safetensors"})
    (f / "s1.safetensors").symlink_to(f.parent / "outside.safetensors")


def linked_model(f: Path) -> None:
    one(f.parent, "outside.safetensors")
    f.mkdir()
    (f / "model.safetensors").symlink_to(f.parent / "outside.safetensors")


def linked_config(f: Path) -> None:
    one(f, "model.safetensors")
    (f.parent / "secret.json").write_text("{}")
    (f / "config.json").symlink_to(f.parent / "secret.json")


def looping_link(f: Path) -> None:
    f.mkdir()
    (f / "model.safetensors.index.json").symlink_to(f / "model.safetensors.index.json")
    sharded_name = f / "s1.safetensors"
    sharded_name.symlink_to(sharded_name)


def dot_shard(f: Path) -> None:
    sharded(f, {"a": ".."})


def null_shard(f: Path) -> None:
    sharded(f, {"a": "s1\0.safetensors"})


def half_a_name(f: Path) -> None:
    sharded(f, {"a": "\ud800.safetensors"})


def number_shard(f: Path) -> None:
    sharded(f, {"a": 3})


def index_lists_more(f: Path) -> None:
    one(f)
    sharded(f, {"a": "s1.safetensors", "b": "s1.safetensors"})


def index_lists_less(f: Path) -> None:
    one(f)
    one(f, "s2.safetensors", "b")
    save_file({"b": torch.ones(1), "c": torch.ones(1)}, f / "s2.safetensors")
    sharded(f, {"a": "s1.safetensors", "b": "s2.safetensors"})


def index_without_map(f: Path) -> None:
    f.mkdir()
    (f / "model.safetensors.index.json").write_text("{}")


def index_cut(f: Path) -> None:
    f.mkdir()
    (f / "model.safetensors.index.json").write_text('{"weight_map": {"a": "s1')


def index_twice(f: Path) -> None:
    one(f)
    text = '{"weight_map": {"a": "s1.safetensors", "a": "s1.safetensors"}}'
    (f / "model.safetensors.index.json").write_text(text)


def index_huge(f: Path) -> None:
    f.mkdir()
    with (f / "model.safetensors.index.json").open("wb") as stream:
        stream.truncate(10**12)


def config_cut(f: Path) -> None:
    one(f, "model.safetensors")
    (f / "config.json").write_text('{"model_type": ')


def config_list(f: Path) -> None:
    one(f, "model.safetensors")
    (f / "config.json").write_text("[]")


def gptq(f: Path) -> None:
    one(f, "model.safetensors")
    (f / "config.json").write_text('{"quantization_config": {"quant_method": "gptq", "bits": 4}}')


def adapter(f: Path) -> None:
    one(f, "adapter_model.safetensors")
    (f / "adapter_config.json").write_text("{}")


def fifo(f: Path) -> None:
    f.mkdir()
    os.mkfifo(f / "model.safetensors")


def folder_as_file(f: Path) -> None:
    (f / "model.safetensors").mkdir(parents=True)


def empty(f: Path) -> None:
    f.mkdir()


def several_unindexed(f: Path) -> None:
    one(f, "x.safetensors")
    one(f, "y.safetensors")


def many_layers(f: Path) -> None:
    one(f, "model.safetensors")
    (f / "config.json").write_text('{"model_type": "llama", "num_hidden_layers": 1000000000}')


def damaged_shard(f: Path) -> None:
    one(f)
    sharded(f, {"a": "s1.safetensors"})
    data = (f / "s1.safetensors").read_bytes()
    (f / "s1.safetensors").write_bytes(data[:-5])


def shard_is_the_index(f: Path) -> None:
    sharded(f, {"a": "model.safetensors.index.json"})


def shard_is_a_folder(f: Path) -> None:
    sharded(f, {"a": "s1.safetensors"})
    (f / "s1.safetensors").mkdir()


def shard_is_a_device(f: Path) -> None:
    sharded(f, {"a": "s1.safetensors"})
    (f / "s1.safetensors").symlink_to("/dev/zero")


def unreadable_shard(f: Path) -> None:
    """A pickle under a shard's name."""
    sharded(f, {"a": "s1.safetensors"})
    torch.save({"a": torch.ones(2)}, f / "s1.safetensors")


def map_is_a_list(f: Path) -> None:
    sharded(f, ["s1.safetensors"])


def index_of_many(f: Path) -> None:
    sharded(f, {f"t{i}": f"s{i}.safetensors" for i in range(200_000)})


def index_of_files(f: Path) -> None:
    sharded(f, {f"t{i}": f"s{i}.safetensors" for i in range(50_000)})


def index_nested(f: Path) -> None:
    f.mkdir()
    (f / "model.safetensors.index.json").write_text('{"weight_map":' + "[" * 300_000)


def index_is_pickle(f: Path) -> None:
    f.mkdir()
    (f / "model.safetensors.index.json").write_bytes(pickle.dumps({"weight_map": {"a": "b"}}))


def linked_index(f: Path) -> None:
    one(f.parent)
    sharded(f.parent, {"a": "s1.safetensors"})
    one(f)
    (f / "model.safetensors.index.json").symlink_to(f.parent / "model.safetensors.index.json")


def pickle_only(f: Path) -> None:
    f.mkdir()
    torch.save({"a": torch.ones(2)}, f / "pytorch_model.bin")


FOLDERS: dict[str, tuple[Callable[[Path], None], str]] = {
    "missing shard": (missing_shard, "s2.safetensors"),
    "../ shard": (parent_shard, "no bare file name"),
    "absolute shard": (absolute_shard, "no bare file name"),
    "shard in a subfolder": (nested_shard, "no bare file name"),
    "shard linked away": (linked_shard, "leaves the folder"),
    "model linked away": (linked_model, "leaves the folder"),
    "config linked away": (linked_config, "leaves the folder"),
    "looping link": (looping_link, "model.safetensors.index.json"),
    ".. as a shard": (dot_shard, "no bare file name"),
    "NUL in a shard": (null_shard, "no bare file name"),
    "number as a shard": (number_shard, "'a'"),
    "index lists more": (index_lists_more, "'b'"),
    "index lists less": (index_lists_less, "'c'"),
    "index without a map": (index_without_map, "weight_map"),
    "index cut off": (index_cut, "model.safetensors.index.json"),
    "index with a tensor twice": (index_twice, "stands twice"),
    "index of a terabyte": (index_huge, "at most"),
    "config cut off": (config_cut, "config.json"),
    "config a list": (config_list, "config.json"),
    "quantised": (gptq, "gptq"),
    "adapter": (adapter, "PEFT"),
    "FIFO": (fifo, "regular file"),
    "folder as a file": (folder_as_file, "regular file"),
    "empty folder": (empty, "holds no model.safetensors"),
    "several files, no index": (several_unindexed, "x.safetensors, y.safetensors"),
    "half a character as a shard": (half_a_name, "JSON"),
    "a billion layers": (many_layers, "num_hidden_layers"),
    "a damaged shard": (damaged_shard, "s1.safetensors: is cut off"),
    "the index as a shard": (shard_is_the_index, "at most"),
    "a folder as a shard": (shard_is_a_folder, "regular file"),
    "a device as a shard": (shard_is_a_device, "leaves the folder"),
    "a pickle as a shard": (unreadable_shard, "s1.safetensors"),
    "index with a list": (map_is_a_list, "weight_map"),
    "index of 200k shards": (index_of_many, "too many"),
    "index of 50k shards": (index_of_files, "at most"),
    "index nested deeply": (index_nested, "JSON"),
    "index a pickle": (index_is_pickle, "JSON"),
    "index linked away": (linked_index, "leaves the folder"),
    "pickled weights": (pickle_only, "allow_pickle_weights"),
}
