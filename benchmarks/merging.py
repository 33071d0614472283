"""How long a candidate with new weights and densities takes to merge, beside mergekit and a copy.

    python benchmarks/merging.py --mergekit-python .venv-mergekit/bin/python
    python benchmarks/merging.py --layers 6 --hidden 64 --vocabulary 128     # the tiny family
    python benchmarks/merging.py --growth                                    # experts and sizes

Both sides merge the same synthetic models, mapped or held in memory, in turns, in one run, with the
same number of threads; the least time of each is reported. Every layer of ours has weights and
densities of its own; mergekit's candidate has one set for all layers. "ratio" is mergekit's time
over ours. "share of copy" is what a candidate has to read and write at the least (base, experts and
cached draws or ranks, and the result), in bytes a second, over the same figure of a copy. The first
candidate, with all that is prepared once, stands beside; "held" is what was prepared, "peak" the
most memory beside mapped files up to then, with the resident model and all that was prepared.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

METHODS = {  # bytes read for each entry and source, beside the source itself
    "linear": 0,
    "slerp": 0,
    "task_arithmetic": 0,
    "ties": 0,
    "dare_linear": 2,
    "dare_ties": 2,
    "della": 4,
    "breadcrumbs": 0,
    "sce": 0,
}
PER_SOURCE = {"density": 0.3, "weight": 0.2}


def names_of(num_experts: int) -> list[str]:
    return [f"expert{i}" for i in range(num_experts)]


def shapes_of(hidden: int, layers: int, vocabulary: int) -> dict[str, tuple[int, ...]]:
    """A decoder's tensors; hidden 576, 30 layers, vocabulary 49,152 are SmolLM2-135M's."""
    inner, keys = hidden * 8 // 3, max(hidden // 3, 1)
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (vocabulary, hidden),
        "model.norm.weight": (hidden,),
    }
    for layer in range(layers):
        block = f"model.layers.{layer}"
        shapes |= {f"{block}.self_attn.{x}_proj.weight": (hidden, hidden) for x in "qo"}
        shapes |= {f"{block}.self_attn.{x}_proj.weight": (keys, hidden) for x in "kv"}
        shapes |= {f"{block}.mlp.{x}_proj.weight": (inner, hidden) for x in ("gate", "up")}
        shapes[f"{block}.mlp.down_proj.weight"] = (hidden, inner)
        shapes |= {f"{block}.{x}_layernorm.weight": (hidden,) for x in ("input", "post_attention")}
    return shapes


def write_models(folder: Path, shapes: dict[str, tuple[int, ...]], num_experts: int) -> None:
    """A base and its fine-tunes, as bfloat16 files."""
    generator = torch.Generator().manual_seed(0)
    base = {name: torch.randn(shape, generator=generator) * 0.02 for name, shape in shapes.items()}
    save_file({k: v.bfloat16() for k, v in base.items()}, folder / "base.safetensors")
    for name in names_of(num_experts):
        tuned = {
            key: (value + torch.randn(value.shape, generator=generator) * 1e-3).bfloat16()
            for key, value in base.items()
        }
        save_file(tuned, folder / f"{name}.safetensors")


def parameters(method: str, turn: int, num_experts: int) -> dict[str, Any]:
    """Another candidate each turn: new weights and, where there are any, new densities."""
    if method == "slerp":
        return {"t": 0.3 + 0.01 * (turn % 50)}
    if method == "sce":
        return {"select_topk": 0.3 + 0.01 * (turn % 50)}
    chosen = {
        name: {
            expert: first + 0.4 * i / num_experts + 0.001 * turn
            for i, expert in enumerate(names_of(num_experts))
        }
        for name, first in PER_SOURCE.items()
    }
    return chosen if method not in ("linear", "task_arithmetic") else {"weight": chosen["weight"]}


def serve_mergekit(folder: Path, num_experts: int) -> None:
    """Runs in mergekit's environment: for each method that is asked for, answer the seconds."""
    from mergekit.merge_methods import merge_state_dicts  # type: ignore[import-not-found]

    experts = names_of(num_experts)
    states = {name: load_file(folder / f"{name}.safetensors") for name in ("base", *experts)}
    for line in sys.stdin:
        method, turn = json.loads(line)
        used = {"linear": experts, "slerp": ["base", experts[0]]}.get(method, ["base", *experts])
        start = time.perf_counter()
        merge_state_dicts(
            {name: states[name] for name in used},
            method,
            parameters=parameters(method, turn, num_experts),
            base=None if method == "linear" else "base",
        )
        print(json.dumps(time.perf_counter() - start), flush=True)


class Mergekit:
    """mergekit in an environment of its own."""

    def __init__(self, python: Path, arguments: list[str]) -> None:
        command = [str(python), __file__, *arguments]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def seconds(self, method: str, turn: int) -> float:
        """One candidate, merged in memory."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([method, turn]) + "\n")
        self._process.stdin.flush()
        return float(json.loads(self._process.stdout.readline()))


class Ours:
    """Writes candidates into one set of tensors, as a worker does."""

    def __init__(
        self, folder: Path, num_layers: int, num_experts: int, method: str, compat: str, gb: float
    ) -> None:
        from evomerge.checkpoints.anatomy import anatomy_of
        from evomerge.checkpoints.open import open_checkpoint
        from evomerge.merging.materialise import Merger

        self._experts = names_of(num_experts)
        opened = {
            name: open_checkpoint(folder / f"{name}.safetensors", name=name)
            for name in ("base", *self._experts)
        }
        base = opened["base"]
        self.merger = Merger(opened, anatomy_of(base), "base", int(gb * 2**30))
        self._out = {name: base.tensor(name).clone() for name in base.names}
        self._num_layers, self._method = num_layers, method
        self._fixed = {} if method in ("linear", "slerp") else {"compat": compat}

    def seconds(self, turn: int) -> float:
        """One candidate whose layers all have values of their own."""
        from evomerge.recipe import Recipe

        method, experts = self._method, self._experts

        def chosen(turn: int) -> dict[str, Any]:
            return parameters(method, turn, len(experts)) | self._fixed

        layers = [
            {"layer": i, "merges": {"default": {"parameters": chosen(turn + i)}}}
            for i in range(self._num_layers)
        ]
        default = {
            "operator": method,
            "sources": experts[:1] if method == "slerp" else experts,
            "parameters": chosen(turn),
        }
        models = {name: name for name in ("base", *experts)}
        recipe = Recipe.model_validate(
            {"base": "base", "models": models, "default": default, "slots": layers}
        )
        start = time.perf_counter()
        for group, effective in self.merger.plan(recipe).items():
            self.merger.write(group, effective, [self._out[name] for name in group.names])
        return time.perf_counter() - start

    @property
    def held_bytes(self) -> int:
        """What was prepared and is kept."""
        return self.merger.family.cache.used_bytes


class PeakMemory:
    """The most memory of this process that no file stands for, while it is watched."""

    def __enter__(self) -> PeakMemory:
        self.before = self.peak = anonymous_bytes()
        self._done = threading.Event()
        self._watcher = threading.Thread(target=self._watch)
        self._watcher.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._watcher.join()

    def _watch(self) -> None:
        while not self._done.wait(0.005):
            self.peak = max(self.peak, anonymous_bytes())


def anonymous_bytes() -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0]) * 1024


def copy_seconds(size: int, turns: int) -> float:
    """The least time for a copy of as many bfloat16 entries."""
    source, target = torch.zeros(size).bfloat16(), torch.empty(size).bfloat16()
    best = math.inf
    for _ in range(turns):
        start = time.perf_counter()
        target.copy_(source)
        best = min(best, time.perf_counter() - start)
    return best


def compare(arguments: argparse.Namespace, folder: Path) -> None:
    """The table of all methods."""
    shapes = shapes_of(arguments.hidden, arguments.layers, arguments.vocabulary)
    size = sum(map(math.prod, shapes.values()))
    write_models(folder, shapes, arguments.experts)
    theirs = None
    if arguments.mergekit_python:
        given = [f"--{key}={getattr(arguments, key)}" for key in ("experts", "threads")]
        theirs = Mergekit(arguments.mergekit_python, [*given, f"--serve-mergekit={folder}"])
    print(
        f"{size:,} parameters x {arguments.experts} experts, bfloat16, "
        f"compat: {arguments.compat}, {arguments.threads} thread(s)"
    )
    heads = [
        "method",
        "first s",
        "ours ms",
        "mergekit ms",
        "ratio",
        "share of copy",
        "held MB",
        "peak MB",
    ]
    print(("{:16}" + "{:>13}" * 7).format(*heads))
    for method, beside in METHODS.items():
        with PeakMemory() as memory:
            ours = Ours(
                folder, arguments.layers, arguments.experts, method, arguments.compat, arguments.gb
            )
            first_s = ours.seconds(0)
        ours_s = mergekit_s = copy_s = math.inf
        for turn in range(1, arguments.turns + 1):
            ours_s = min(ours_s, ours.seconds(turn))
            copy_s = min(copy_s, copy_seconds(size, 3))
            if theirs is not None and turn <= arguments.mergekit_turns:
                mergekit_s = min(mergekit_s, theirs.seconds(method, turn))
        sources = 1 if method == "slerp" else arguments.experts
        entries = sources * (2 + beside) + (0 if method == "linear" else 2) + 2
        share = (entries / ours_s) / (4 / copy_s)
        print(
            f"{method:16}{first_s:13.2f}{ours_s * 1e3:13.1f}{mergekit_s * 1e3:13.0f}"
            f"{mergekit_s / ours_s:13.1f}{share:13.0%}{ours.held_bytes / 1e6:13.0f}"
            f"{(memory.peak - memory.before) / 1e6:13.0f}",
            flush=True,
        )
        del ours


def growth(arguments: argparse.Namespace) -> None:
    """How time grows with experts and parameters; nanoseconds an entry should not."""
    print("method           experts   parameters   ours ms   ns an entry and model read or written")
    cases = [(k, (576, 12, 8192)) for k in (2, 4, 8)]
    sizes = ((272, 16, 16384), (576, 12, 8192), (576, 30, 49152), (1056, 38, 49152))  # 17M to 504M
    cases += [(3, size) for size in sizes]
    for num_experts, (hidden, layers, vocabulary) in cases:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            shapes = shapes_of(hidden, layers, vocabulary)
            write_models(folder, shapes, num_experts)
            size = sum(map(math.prod, shapes.values()))
            for method in ("linear", "task_arithmetic", "ties", "dare_ties", "della"):
                ours = Ours(folder, layers, num_experts, method, arguments.compat, arguments.gb)
                ours.seconds(0)
                least = min(ours.seconds(turn) for turn in range(1, arguments.turns + 1))
                each = least / size / (num_experts + (1 if method == "linear" else 2))
                print(
                    f"{method:16}{num_experts:8}{size:13,}{least * 1e3:10.1f}{each * 1e9:10.3f}",
                    flush=True,
                )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--hidden", type=int, default=576)
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--vocabulary", type=int, default=49152)
    parser.add_argument("--experts", type=int, default=3)
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--mergekit-turns", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--compat", default="published", choices=("mergekit", "published"))
    parser.add_argument("--gb", type=float, default=4.0, help="for what is prepared")
    parser.add_argument("--growth", action="store_true")
    parser.add_argument("--mergekit-python", type=Path, help="an interpreter that has mergekit")
    parser.add_argument("--serve-mergekit", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.serve_mergekit:
        serve_mergekit(arguments.serve_mergekit, arguments.experts)
        return
    print(f"torch {torch.__version__}, Python {platform.python_version()}, {platform.machine()}")
    if arguments.growth:
        growth(arguments)
        return
    with tempfile.TemporaryDirectory() as folder:
        compare(arguments, Path(folder))


if __name__ == "__main__":
    main()
