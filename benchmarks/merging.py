"""How long a candidate with new weights takes to merge, beside mergekit and a memory copy.

    python benchmarks/merging.py [--hidden 64 --layers 6] [--mergekit-python VENV/bin/python]

Both sides merge the same synthetic models in memory, in turns, in one run, on one thread; the least
time of each is reported. The ratio is mergekit's time over ours (higher is better); "copies" is our
time in copies of one float32 vector of the model's size. The first candidate, whose preparing is
not paid again, is shown beside them. Each layer of ours has weights and densities of its own.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

EXPERTS = ("a", "b", "c")
METHODS = ("linear", "slerp", "task_arithmetic", "ties", "dare_linear", "dare_ties")


def models(hidden: int, layers: int, dtype: str) -> dict[str, dict[str, torch.Tensor]]:
    """A base and three experts of a decoder's shapes."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"model.embed_tokens.weight": (1024, hidden), "model.norm.weight": (hidden,)}
    inner = hidden * 8 // 3
    for layer in range(layers):
        block = f"model.layers.{layer}"
        shapes |= {f"{block}.self_attn.{x}_proj.weight": (hidden, hidden) for x in "qkvo"}
        shapes |= {f"{block}.mlp.{x}_proj.weight": (inner, hidden) for x in ("gate", "up")}
        shapes[f"{block}.mlp.down_proj.weight"] = (hidden, inner)
        shapes |= {f"{block}.{x}_layernorm.weight": (hidden,) for x in ("input", "post_attention")}
    base = {name: torch.randn(shape, generator=generator) * 0.02 for name, shape in shapes.items()}
    found = {"base": base}
    for expert in EXPERTS:
        found[expert] = {
            name: value + torch.randn(value.shape, generator=generator) * 1e-3
            for name, value in base.items()
        }
    kind = getattr(torch, dtype)
    return {m: {name: v.to(kind) for name, v in state.items()} for m, state in found.items()}


def parameters(method: str, turn: int) -> dict[str, Any]:
    """Another candidate each turn: new weights and, where there are any, new densities."""
    if method == "slerp":
        return {"t": 0.3 + 0.01 * (turn % 50)}
    weight = {name: 0.2 + 0.1 * i + 0.001 * turn for i, name in enumerate(EXPERTS)}
    if method in ("linear", "task_arithmetic"):
        return {"weight": weight}
    return {
        "weight": weight,
        "density": {name: 0.3 + 0.1 * i + 0.001 * turn for i, name in enumerate(EXPERTS)},
    }


def serve_mergekit(arguments: argparse.Namespace) -> None:
    """Runs in mergekit's environment: for each method that is asked for, answer the seconds."""
    from mergekit.merge_methods import merge_state_dicts  # type: ignore[import-not-found]

    states = models(arguments.hidden, arguments.layers, arguments.dtype)
    for line in sys.stdin:
        method, turn = json.loads(line)
        used = {"linear": EXPERTS, "slerp": ("base", "a")}.get(method, ("base", *EXPERTS))
        start = time.perf_counter()
        merge_state_dicts(
            {name: states[name] for name in used},
            method,
            parameters=parameters(method, turn),
            base=None if method == "linear" else "base",
        )
        print(json.dumps(time.perf_counter() - start), flush=True)


class Ours:
    """Writes candidates into one set of tensors, as a worker does."""

    def __init__(self, states: dict[str, dict[str, torch.Tensor]], cache_bytes: int) -> None:
        from evomerge.checkpoints.anatomy import anatomy_of
        from evomerge.checkpoints.open import open_checkpoint
        from evomerge.merging.materialise import Merger

        opened = {name: open_checkpoint(state, name=name) for name, state in states.items()}
        self.merger = Merger(opened, anatomy_of(opened["base"]), "base", cache_bytes)
        self.out = {name: value.clone() for name, value in states["base"].items()}

    def seconds(self, method: str, turn: int, compat: str, layers: int) -> float:
        """One candidate whose layers all have weights of their own."""
        from evomerge.recipe import Recipe

        fixed = {} if method in ("linear", "slerp") else {"compat": compat}
        recipe = Recipe.model_validate(
            {
                "base": "base",
                "models": {name: name for name in ("base", *EXPERTS)},
                "default": {
                    "operator": method,
                    "sources": ["a"] if method == "slerp" else EXPERTS,
                    "parameters": parameters(method, turn) | fixed,
                },
                "slots": [
                    {
                        "layer": i,
                        "merges": {"default": {"parameters": parameters(method, turn + i)}},
                    }
                    for i in range(layers)
                ],
            }
        )
        start = time.perf_counter()
        for group, effective in self.merger.plan(recipe).items():
            self.merger.write(group, effective, [self.out[name] for name in group.names])
        return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--compat", default="mergekit", choices=("mergekit", "published"))
    parser.add_argument("--cache-gb", type=float, default=4.0)
    parser.add_argument("--mergekit-python", type=Path, help="an interpreter that has mergekit")
    parser.add_argument("--serve-mergekit", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.serve_mergekit:
        serve_mergekit(arguments)
        return
    compare(arguments)


def compare(arguments: argparse.Namespace) -> None:
    states = models(arguments.hidden, arguments.layers, arguments.dtype)
    size = sum(value.numel() for value in states["base"].values())
    source, target = torch.randn(size), torch.empty(size)
    ours = Ours(states, int(arguments.cache_gb * 2**30))
    theirs = None
    if arguments.mergekit_python:
        command = [arguments.mergekit_python, __file__, *sys.argv[1:], "--serve-mergekit"]
        theirs = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    print(f"{size:,} parameters x {len(EXPERTS)} experts, {arguments.dtype}, {arguments.compat}")
    print(f"{'method':16} {'first ms':>10} {'ours ms':>9} {'mergekit ms':>11} {'ratio':>7} copies")
    for method in METHODS:
        prepare_s = ours.seconds(method, 0, arguments.compat, arguments.layers)
        ours_s = mergekit_s = copy_s = float("inf")
        for turn in range(1, arguments.turns + 1):
            ours_s = min(ours_s, ours.seconds(method, turn, arguments.compat, arguments.layers))
            start = time.perf_counter()
            target.copy_(source)
            copy_s = min(copy_s, time.perf_counter() - start)
            if theirs is not None and (turn <= 3 or arguments.turns * size < 1e8):
                assert theirs.stdin is not None
                assert theirs.stdout is not None
                theirs.stdin.write(json.dumps([method, turn]) + "\n")
                theirs.stdin.flush()
                mergekit_s = min(mergekit_s, json.loads(theirs.stdout.readline()))
        ratio = f"{mergekit_s / ours_s:7.1f}" if theirs is not None else "      -"
        print(
            f"{method:16} {prepare_s * 1e3:10.1f} {ours_s * 1e3:9.2f} {mergekit_s * 1e3:11.2f}"
            f" {ratio} {ours_s / copy_s:6.1f}",
            flush=True,
        )
    if theirs is not None:
        theirs.communicate()


if __name__ == "__main__":
    main()
