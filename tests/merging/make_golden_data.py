"""Writes golden/fusionbench_data.safetensors: FusionBench's merges that look at data.

Run it by hand where fusion-bench 0.2.33 is installed: `python tests/merging/make_golden_data.py`.
Models and their statistics are ours, made from a seed; FusionBench's functions merge them, in
float64. The file holds, in float32,

    model/{model}/{tensor}, fisher/{model}/{tensor}, gram/{model}/{tensor}, out/{case}/{tensor}

and, in its metadata, the versions and the cases: {case: [method, parameters]}.
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
import types
from pathlib import Path

import torch
from safetensors.torch import save_file

TARGET = Path(__file__).parent / "golden" / "fusionbench_data.safetensors"
SHAPES = {
    "layers.0.up.weight": (7, 5),
    "layers.0.down.weight": (4, 9),
    "layers.1.up.weight": (6, 6),
    "layers.0.norm.weight": (5,),
    "embed.weight": (11, 5),
}
LINEAR = ("layers.0.up.weight", "layers.0.down.weight", "layers.1.up.weight")
MODELS = ("a", "b", "c")
CASES = {
    "fisher": ["fisher", {}],
    "fisher weighted": ["fisher", {"weight": {"a": 0.2, "b": 1.5, "c": 0.7}}],
    "fisher normalised": ["fisher", {"normalize": True}],
    "fisher high floor": ["fisher", {"floor": 0.5, "weight": {"a": 2.0, "b": 0.0, "c": 1.0}}],
    "regmean": ["regmean", {"alpha": 1.0}],
    "regmean .9": ["regmean", {"alpha": 0.9}],
    "regmean .1": ["regmean", {"alpha": 0.1}],
}


def without(*names: str) -> None:
    """Modules that FusionBench imports on its way, and these functions do not need."""
    for name in names:
        module = types.ModuleType(name)
        module.__getattr__ = lambda _: object  # type: ignore[method-assign]
        sys.modules[name] = module


def source_of(path: str) -> types.ModuleType:
    """A file of FusionBench as a module, without its package, which imports all others."""
    root = Path(importlib.metadata.distribution("fusion-bench").locate_file("fusion_bench"))
    text = (root / path).read_text().partition("\n@auto_register_config")[0]
    text = text.partition("\nclass FisherMergingAlgorithm")[0]
    lines = [line for line in text.splitlines() if not line.startswith(("from fusion", "from ."))]
    module = types.ModuleType(path)
    module.__dict__["BaseAlgorithm"] = module.__dict__["SimpleProfilerMixin"] = object
    exec("\n".join(lines), module.__dict__)  # noqa: S102 - a library's own code
    return module


def main() -> None:
    """Make the models, merge them, write the file."""
    without("tqdm.autonotebook")
    fisher = source_of("method/fisher_merging/fisher_merging.py")
    regmean = source_of("method/regmean/regmean.py")
    draw = torch.Generator().manual_seed(7)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=draw).double()

    stored: dict[str, torch.Tensor] = {}
    weights = {name: [normal(*shape) for _ in MODELS] for name, shape in SHAPES.items()}
    fishers = [{n: normal(*s).float().square().double() for n, s in SHAPES.items()} for _ in MODELS]
    grams = []
    for _ in MODELS:
        inputs = {name: normal(30, SHAPES[name][1]) for name in LINEAR}
        grams.append({n: (x.T @ x / len(x)).float().double() for n, x in inputs.items()})
    for k, model in enumerate(MODELS):
        stored |= {f"model/{model}/{name}": value[k] for name, value in weights.items()}
        stored |= {f"fisher/{model}/{name}": value for name, value in fishers[k].items()}
        stored |= {f"gram/{model}/{name}": value for name, value in grams[k].items()}
    for case, (method, parameters) in CASES.items():
        if method == "fisher":
            given = parameters.get("weight", dict.fromkeys(MODELS, 1.0))
            found = fisher.merging_with_fisher_weights(
                weights,
                fishers,
                torch.tensor([given[m] for m in MODELS], dtype=torch.float64),
                parameters.get("normalize", False),
                parameters.get("floor", 1e-6),
            )
        else:
            by_layer = [{n.removesuffix(".weight"): g for n, g in of.items()} for of in grams]
            found = regmean.merging_with_regmean_weights(weights, by_layer, parameters["alpha"])
        stored |= {f"out/{case}/{name}": value for name, value in found.items()}
    versions = {n: importlib.metadata.version(n) for n in ("fusion-bench", "torch")}
    metadata = {"versions": json.dumps(versions), "cases": json.dumps(CASES)}
    save_file({n: t.float().contiguous() for n, t in stored.items()}, TARGET, metadata)


if __name__ == "__main__":
    main()
