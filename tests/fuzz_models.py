"""Mutated model folders by the thousand: each opens, or ends in a typed error, and nothing else.

    make fuzz          20,000 cases of seed 0

Every case is a function of the seed and its number. A small model, in one file or in shards, is
changed in one to three places: a field of a header, its bytes, its length, the data, the index, the
config, or a link in place of a file. A forked child opens it and reads every tensor, watched for
what it opens (contained.py).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import struct
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from contained import Watch, contained

from evomerge.checkpoints.anatomy import anatomy_of
from evomerge.checkpoints.family import open_family
from evomerge.checkpoints.preflight import preflight
from evomerge.errors import EvomergeError

LIMIT_S = 5.0
BATCH = 250  # cases of one child

SHAPES = {"embed.weight": [4, 3], "layers.0.w": [3, 3], "layers.1.w": [3, 3], "norm.weight": [3]}
WIDTHS = {"F32": 4, "BF16": 2, "F16": 2, "I64": 8, "U8": 1, "BOOL": 1, "F8_E4M3": 1}
NUMBERS: tuple[Any, ...] = (
    *(-1, 0, 1, 7, 2**15, 2**31, 2**32, 2**53, 2**62, 2**63 - 1, 2**63, 2**64, 10**400),
    *(1.5, 1e308, True, None, "3", [], {}),
)
NAMES = (
    "",
    ".",
    "..",
    "/",
    "a",
    "\0",
    "é" * 300,
    "ln" + "1" * 100_000 + "!",
    "a." * 5_000,
    "q" * 100_000,
    "../outside",
    "layers.0.w",
    "__metadata__",
    "\ud800",
)
DTYPES = (*WIDTHS, "F64", "I4", "F4", "", "f32", None, 3, ["F32"], "__class__")


@dataclass
class Parts:
    """A model folder before it is written: what the mutations change.

    headers: by file, the header's entries; raw: a change of the header's bytes, done last.
    """

    headers: dict[str, Any]
    data: dict[str, bytes]
    index: Any
    config: Any
    raw: dict[str, Callable[[bytes], bytes]] = field(default_factory=dict)
    lengths: dict[str, int] = field(default_factory=dict)
    links: dict[str, str] = field(default_factory=dict)
    texts: dict[str, bytes] = field(default_factory=dict)


def whole(rng: random.Random) -> Parts:
    """An undamaged model in one to three files."""
    num_files = rng.choice((1, 1, 2, 3))
    files = (
        ["model.safetensors"] if num_files == 1 else [f"s{i}.safetensors" for i in range(num_files)]
    )
    headers: dict[str, Any] = {file: {} for file in files}
    data = dict.fromkeys(files, b"")
    weight_map = {}
    for i, (name, shape) in enumerate(SHAPES.items()):
        file = files[i % num_files]
        dtype = rng.choice(tuple(WIDTHS))
        size = WIDTHS[dtype]
        for length in shape:
            size *= length
        start = len(data[file])
        headers[file][name] = {
            "dtype": dtype,
            "shape": shape,
            "data_offsets": [start, start + size],
        }
        data[file] += rng.randbytes(size) if dtype != "BOOL" else bytes(size)
        weight_map[name] = file
    index = {"metadata": {}, "weight_map": weight_map} if num_files > 1 else None
    return Parts(headers, data, index, {"model_type": "llama", "architectures": ["X"]})


# --- mutations ------------------------------------------------------------------------------------


def change_entry(parts: Parts, rng: random.Random) -> None:
    """One field of one tensor's entry."""
    header = parts.headers[rng.choice(list(parts.headers))]
    if not isinstance(header, dict) or not header:
        return
    name = rng.choice(list(header))
    entry = header[name]
    if not isinstance(entry, dict) or rng.random() < 0.1:
        header[name] = rng.choice((*NUMBERS, {}, []))
        return
    key = rng.choice(("dtype", "shape", "data_offsets", "data_offsets", "shape", "other"))
    if key == "dtype":
        entry[key] = rng.choice(DTYPES)
    elif key == "other":
        entry["x"] = 1
        del entry[rng.choice(list(entry))]
    elif isinstance(values := entry.get(key), list) and values and rng.random() < 0.8:
        place = rng.randrange(len(values))
        nudge = rng.choice((-1, 1, 4, -4))
        old = values[place]
        values = list(values)
        values[place] = (
            old + nudge if type(old) is int and rng.random() < 0.5 else rng.choice(NUMBERS)
        )
        entry[key] = values
    else:
        entry[key] = rng.choice(
            (*NUMBERS, [0], [0, 0, 0], [[0]], [2**62, 2**62, 2**62], [0] * 1000)
        )


def change_names(parts: Parts, rng: random.Random) -> None:
    """A tensor is renamed, lost, doubled or given another's bytes."""
    header = parts.headers[rng.choice(list(parts.headers))]
    if not isinstance(header, dict) or not header:
        return
    name = rng.choice(list(header))
    how = rng.randrange(4)
    if how == 0:
        header[rng.choice(NAMES)] = header.pop(name)
    elif how == 1:
        del header[name]
    elif how == 2:
        header[rng.choice(NAMES)] = header[name]
    else:
        header["__metadata__"] = rng.choice((*NUMBERS, {"format": "pt"}, {"a": {"b": 1}}))


def change_bytes(parts: Parts, rng: random.Random) -> None:
    """Bytes of the header as it is written, or the whole of it."""
    file = rng.choice(list(parts.headers))
    seed = rng.random()

    def change(text: bytes) -> bytes:
        own = random.Random(seed)
        how = own.randrange(5)
        if how == 0 and text:
            spoiled = bytearray(text)
            for _ in range(own.randint(1, 4)):
                spoiled[own.randrange(len(spoiled))] = own.choice(
                    b'0123456789"[]{},:-eE.\\u\x00\xff '
                )
            return bytes(spoiled)
        if how == 1:
            at = own.randint(0, len(text))
            return text[:at] + text[own.randint(at, len(text)) :]
        if how == 2:
            key = own.choice((b'"layers.0.w"', b'"dtype"', b'"shape"'))
            other = own.choice((b'"embed.weight"', b'"data_offsets"', b'"dtype"'))
            return text.replace(key, other)  # the same key twice
        if how == 3:
            return own.choice(
                (b"", b"{}", b"[]", b"null", b'{"a":' * 2000, b"[" * 100_000, b" " * 50)
            )
        return text + own.choice((b" " * 9, b"x", b"}", b"\x00" * 8, b"{}"))

    parts.raw[file] = change


def change_length(parts: Parts, rng: random.Random) -> None:
    """The eight bytes that say how long the header is."""
    file = rng.choice(list(parts.headers))
    parts.lengths[file] = rng.choice(
        (0, 1, 7, 8, 9, 100, 5000, 16_000_000, 16_000_001, 2**31, 2**62, 2**63, 2**64 - 1)
    )


def change_data(parts: Parts, rng: random.Random) -> None:
    """Data cut, or added to."""
    file = rng.choice(list(parts.data))
    data = parts.data[file]
    how = rng.randrange(3)
    if how == 0:
        parts.data[file] = data[: rng.randint(0, len(data))]
    elif how == 1:
        parts.data[file] = data + bytes(rng.choice((1, 2, 8, 4096)))
    else:
        parts.texts[file] = rng.randbytes(rng.choice((0, 4, 8, 9, 64)))  # the whole file


def change_index(parts: Parts, rng: random.Random) -> None:
    """Entries of the index that lead elsewhere, or nowhere, or are no names."""
    if not isinstance(parts.index, dict):
        parts.index = {"weight_map": {"embed.weight": "model.safetensors"}}
        if rng.random() < 0.7:  # it is read where there is no single file
            parts.headers = {"s0.safetensors": parts.headers.popitem()[1]}
            parts.data = {"s0.safetensors": parts.data.popitem()[1]}
    weight_map = parts.index.get("weight_map")
    how = rng.randrange(4)
    if how == 0 or not isinstance(weight_map, dict) or not weight_map:
        parts.index["weight_map"] = rng.choice((*NUMBERS, "x", [["a", "b"]]))
        return
    name = rng.choice(list(weight_map))
    targets = (
        *(
            "../outside.safetensors",
            "OUTSIDE",
            "/etc/passwd",
            "/dev/zero",
            "..",
            ".",
            "",
            "\0",
            "a\\b",
        ),
        *(
            "sub/s0.safetensors",
            "./s0.safetensors",
            "s0.safetensors/",
            "s9.safetensors",
            "config.json",
        ),
        *("model.safetensors.index.json", "s" * 5000, "~/x", "file:///etc/passwd", "\ud800"),
    )
    if how == 1:
        weight_map[name] = rng.choice((*targets, *NUMBERS))
    elif how == 2:
        weight_map[rng.choice(NAMES)] = rng.choice((*targets, *parts.headers))
    else:
        del weight_map[name]


LINKS = (
    *("../outside.safetensors", "OUTSIDE", "/etc/passwd", "/dev/zero", "/proc/self/mem", ".", ".."),
    *("ITSELF", "nowhere", "sub", "../case/s0.safetensors", "../../../../../etc/hostname"),
)


def change_link(parts: Parts, rng: random.Random) -> None:
    """A link in place of a file."""
    files = (*parts.headers, "config.json", "model.safetensors.index.json", "tokenizer.json")
    name = rng.choice(files)
    parts.links[name] = rng.choice(LINKS).replace("ITSELF", name)


SMALL_FILES = ("config.json", "tokenizer.json", "adapter_config.json", "pytorch_model.bin")
CONTENTS = (
    *(b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"a":1,"a":2}', b"[" * 100_000, b"9" * 10_000),
    *(b'{"model_type": 3}', b'{"model_type": "../x"}', b'{"text_config": []}', b'{"a": "\\ud800"}'),
    *(b'{"quantization_config": 1}', b'{"auto_map": {"AutoConfig": "evil.Config"}}'),
    *(b'{"model_type": "llama", "num_hidden_layers": 1000000000}', b'{"num_labels": 999999999}'),
    *(b'{"model_type": "llama", "hidden_size": 1000000000000}', b'{"model_type": "bert"}'),
    *(b'{"model_type": "llama", "num_hidden_layers": -3, "vocab_size": null}', b'{"n_layer": [1]}'),
    *(b'{"peft_type": "LORA"}', b'{"peft_type": "LORA", "r": -1, "target_modules": [3]}'),
    *(b'{"model": {"vocab": [1]}}', b"cos\nsystem\n(S'exit 1'\ntR."),
)


def change_config(parts: Parts, rng: random.Random) -> None:
    """config.json or another small file that is read beside the weights."""
    parts.texts[rng.choice(SMALL_FILES)] = rng.choice(CONTENTS)


MUTATIONS = (
    *(change_entry, change_entry, change_entry, change_names, change_bytes, change_bytes),
    *(change_length, change_data, change_index, change_index, change_link, change_config),
)


def write_case(folder: Path, seed: int, case: int) -> None:
    """The folder of a case, and beside it what must not be read."""
    rng = random.Random(f"{seed}:{case}")
    parts = whole(rng)
    for _ in range(rng.randint(1, 3)):
        rng.choice(MUTATIONS)(parts, rng)
    folder.mkdir(parents=True)
    (folder / "sub").mkdir()
    outside = folder.parent / "outside.safetensors"
    for file, header in parts.headers.items():
        text = json.dumps(header).encode()
        text = parts.raw[file](text) if file in parts.raw else text
        length = parts.lengths.get(file, len(text))
        (folder / file).write_bytes(struct.pack("<Q", length) + text + parts.data[file])
    outside.write_bytes(struct.pack("<Q", 2) + b"{}")
    for name, value in (
        ("model.safetensors.index.json", parts.index),
        ("config.json", parts.config),
    ):
        if value is not None:
            (folder / name).write_text(json.dumps(value).replace("OUTSIDE", str(outside)))
    for name, content in parts.texts.items():
        (folder / name).write_bytes(content)
    for name, target in parts.links.items():
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(target.replace("OUTSIDE", str(outside)))


# --- what must hold -------------------------------------------------------------------------------


def open_case(folder: Path) -> str:
    """Open a case as a merge would, and read every tensor: "opened", or the problem's kind.

    Whatever is raised that is no typed error goes up.
    """
    try:
        family = open_family({"base": folder, "expert": folder}, "base")
        anatomy_of(family.checkpoints["base"]).table()
        preflight(family.checkpoints, "base")
        for checkpoint in family.checkpoints.values():
            for name in checkpoint.names:
                checkpoint.tensor(name).clone()
    except EvomergeError as error:
        if not error.problems or not str(error).strip():
            raise AssertionError("an error that says nothing") from error
        str(error).encode("utf-8", "backslashreplace")
        return "refused"
    return "opened"


@dataclass
class Figures:
    """What came of the cases; `wrong` has the numbers of those that must not have ended so."""

    counts: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    slowest_s: float = 0.0
    highest_kb: int = 0


def fuzz(
    num_cases: int, seed: int, scratch: Path, told: Callable[[int], None] | None = None
) -> Figures:
    """Open the cases, a child for each batch; a child that dies is the case it was at."""
    figures = Figures()
    case = 0
    while case < num_cases:
        stop = min(case + BATCH, num_cases)
        mark = scratch / "at"
        mark.write_text(str(case))

        def work(watch: Watch, first: int = case, stop: int = stop, mark: Path = mark) -> Any:
            return [_one(watch, number, seed, scratch, mark) for number in range(first, stop)]

        ended = contained(work, [scratch], limit_s=None)
        if ended.result is None:
            case = int(mark.read_text())
            kind = "hung" if ended.signal == signal.SIGALRM else f"died of signal {ended.signal}"
            figures.wrong.append(f"case {case}: {kind}")
            case += 1
            continue
        for number, (kind, seconds, outside) in enumerate(ended.result, start=case):
            figures.counts[kind.partition(":")[0]] += 1
            figures.slowest_s = max(figures.slowest_s, seconds)
            if kind not in ("opened", "refused"):
                figures.wrong.append(f"case {number}: {kind}")
            figures.wrong += [f"case {number}: read {path}" for path in outside]
        figures.highest_kb = max(figures.highest_kb, ended.grown_kb)
        case = stop
        if told is not None:
            told(case)
    return figures


def _one(
    watch: Watch, number: int, seed: int, scratch: Path, mark: Path
) -> tuple[str, float, list[str]]:
    folder = scratch / f"{number}" / "case"
    mark.write_text(str(number))
    watch.allow([scratch])
    write_case(folder, seed, number)
    watch.allow([folder])
    watch.outside.clear()
    signal.setitimer(signal.ITIMER_REAL, LIMIT_S)
    start = time.perf_counter()
    try:
        kind = open_case(folder)
    except BaseException as error:
        kind = f"{type(error).__name__}: {error}"[:300]
    seconds = time.perf_counter() - start
    signal.setitimer(signal.ITIMER_REAL, 0)
    outside = list(watch.outside)
    watch.allow([scratch])
    shutil.rmtree(folder.parent)
    watch.outside.clear()
    return kind, seconds, outside


def main() -> int:
    """Run the cases, print the figures; 1 if any ended as it must not."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    import torch
    import transformers  # noqa: F401  # so that every child has it

    torch.set_num_threads(1)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["EVOMERGE_CACHE"] = scratch
        found = fuzz(
            options.cases,
            options.seed,
            Path(scratch),
            lambda done: print(f"\r{done}", end="", file=sys.stderr),
        )
    counted = ", ".join(f"{count} {kind}" for kind, count in found.counts.most_common())
    print(f"\r{options.cases} cases of seed {options.seed}: {counted}")
    print(
        f"slowest {found.slowest_s:.2f} s, memory +{found.highest_kb / 1024:.0f} MB at most, "
        f"{time.perf_counter() - start:.0f} s in all"
    )
    for line in found.wrong[:50]:
        print(line)
    return 1 if found.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
