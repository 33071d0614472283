"""Writes golden/mergekit.safetensors: what mergekit computes for small, awkward tensors.

Run it where mergekit 0.1.5 is installed: `python tests/merging/make_golden.py`. It is run by hand;
the tests read the file that it has written. The tensors are ours, made from a seed; DARE's random
masks are recorded as they are drawn, so that a test can inject them.
"""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path

import torch
from mergekit.merge_methods import merge_state_dicts
from safetensors.torch import save_file

MODELS = ("base", "a", "b", "c")
TARGET = Path(__file__).parent / "golden" / "mergekit.safetensors"

WEIGHTS = [0.7, 0.2, 0.4]
SIGNED = [0.7, -0.5, 0.4]
ONES = [1.0, 1.0, 1.0]
SOME = [0.5, 0.34, 0.9]
ONE_WIDE = ("width_one", "single")
# name: (mergekit's method, its parameters, the tensors left out)
CASES: dict[str, tuple[str, dict[str, object], tuple[str, ...]]] = {
    "linear": ("linear", {"weight": WEIGHTS}, ()),
    "linear_sum": ("linear", {"weight": SIGNED, "normalize": False}, ()),
    "slerp_0.3": ("slerp", {"t": 0.3}, ()),
    "slerp_0.8": ("slerp", {"t": 0.8}, ()),
    "task_arithmetic": ("task_arithmetic", {"weight": SIGNED, "lambda": 0.6}, ()),
    "task_arithmetic_mean": ("task_arithmetic", {"weight": WEIGHTS, "normalize": True}, ()),
    # Which of several tied entries mergekit keeps is its sort's business: those are left out.
    "ties": ("ties", {"weight": WEIGHTS, "density": SOME}, ("tied", "constant")),
    "ties_ones": ("ties", {"weight": ONES, "density": [0.4] * 3}, ("tied", "constant")),
    "ties_sum": (
        "ties",
        {"weight": SIGNED, "density": SOME, "normalize": False, "lambda": 0.5},
        ("tied", "constant"),
    ),
    "ties_tiny_density": ("ties", {"weight": WEIGHTS, "density": [1e-6] * 3}, ("tied", "constant")),
    "ties_no_density": (
        "ties",
        {"weight": WEIGHTS, "density": [0.0, 0.5, 1.0]},
        ("tied", "constant"),
    ),
    "ties_dense": ("ties", {"weight": WEIGHTS, "density": ONES}, ()),
    "dare_linear": ("dare_linear", {"weight": SIGNED, "density": SOME}, ()),
    "dare_ties": ("dare_ties", {"weight": WEIGHTS, "density": SOME}, ()),
    "dare_ties_mean": ("dare_ties", {"weight": WEIGHTS, "density": SOME, "normalize": True}, ()),
    "dare_unscaled": ("dare_linear", {"weight": ONES, "density": SOME, "rescale": False}, ()),
    # A row of width 1 has no ranks in mergekit: it divides 0 by 0.
    "della": ("della", {"weight": WEIGHTS, "density": SOME, "epsilon": [0.3, 0.1, 0.05]}, ONE_WIDE),
    "della_linear": (
        "della_linear",
        {"weight": SIGNED, "density": SOME, "epsilon": [0.05, 0.1, 0.02]},
        ONE_WIDE,
    ),
    "della_unscaled": (
        "della",
        {"weight": ONES, "density": SOME, "epsilon": [0.3, 0.1, 0.05], "rescale": False},
        ONE_WIDE,
    ),
    "breadcrumbs": (
        "breadcrumbs",
        {"weight": SIGNED, "density": SOME, "gamma": [0.01, 0.1, 0.05]},
        ("tied", "constant"),
    ),
    "breadcrumbs_ties": (
        "breadcrumbs_ties",
        {"weight": WEIGHTS, "density": SOME, "gamma": [0.2, 0.5, 0.0], "lambda": 0.7},
        ("tied", "constant"),
    ),
    "breadcrumbs_defaults": ("breadcrumbs", {"weight": ONES, "density": ONES}, ()),
    "breadcrumbs_none": (
        "breadcrumbs",
        {"weight": ONES, "density": [0.0, 1e-6, 0.1]},
        ("tied", "constant"),
    ),
}


def inputs() -> dict[str, dict[str, torch.Tensor]]:
    """By tensor, by model: ordinary values, and those on which implementations differ."""
    generator = torch.Generator().manual_seed(20250101)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    tensors = {
        "ordinary": {model: normal(7, 9) for model in MODELS},
        "bias": {model: normal(11) for model in MODELS},
        "width_one": {model: normal(13, 1) for model in MODELS},
        "single": {model: normal(1) for model in MODELS},
        "null": {model: torch.zeros(5, 3) for model in MODELS},
        "null_base": {model: normal(6, 4) * (model != "base") for model in MODELS},
        "constant": {model: torch.full((4, 6), float(i)) for i, model in enumerate(MODELS)},
        "tied": {model: normal(8, 8).mul_(2).round_() for model in MODELS},
    }
    base = normal(9, 5)
    tensors["close"] = {m: base + 1e-3 * (m != "base") * normal(9, 5) for m in MODELS}
    base = 1e-20 * normal(5, 8)  # too small for a norm to be matched, in float32
    tensors["tiny"] = {m: base + 1e-20 * (m != "base") * normal(5, 8) for m in MODELS}
    tensors["bfloat16"] = {model: normal(6, 9).bfloat16() for model in MODELS}
    base = normal(6, 6)
    unchanged = {m: base + (m in "bc") * normal(6, 6) for m in MODELS}
    opposite = base.clone(), normal(6, 6)
    tensors["unchanged"] = unchanged
    tensors["opposite"] = {
        "base": torch.zeros(6, 6),
        "a": opposite[1],
        "b": -opposite[1],
        "c": opposite[0] * (torch.arange(36).view(6, 6) % 2),
    }
    return tensors


def main() -> None:
    """Run every case on every tensor and write the file."""
    torch.set_num_threads(1)
    torch.manual_seed(7)  # mergekit draws from the global generator
    masks: list[torch.Tensor] = []
    bernoulli = torch.bernoulli

    def recorded(*args: object, **kwargs: object) -> torch.Tensor:
        masks.append(bernoulli(*args, **kwargs))  # type: ignore[arg-type]
        return masks[-1]

    torch.bernoulli = recorded  # type: ignore[assignment]
    stored = {}
    for tensor, by_model in inputs().items():
        stored |= {f"in/{tensor}/{model}": value for model, value in by_model.items()}
        for case, (method, parameters, left_out) in CASES.items():
            if tensor in left_out:
                continue
            masks.clear()
            stored[f"out/{case}/{tensor}"] = merged(method, parameters, tensor, by_model)
            stored |= {f"mask/{case}/{tensor}/{k}": mask.bool() for k, mask in enumerate(masks)}
    versions = {name: importlib.metadata.version(name) for name in ("mergekit", "torch")}
    cases = {case: {"method": row[0], "parameters": row[1]} for case, row in CASES.items()}
    TARGET.parent.mkdir(exist_ok=True)
    save_file(
        {name: value.contiguous().clone() for name, value in stored.items()},
        TARGET,
        metadata={"versions": json.dumps(versions), "cases": json.dumps(cases)},
    )


def merged(
    method: str, parameters: dict[str, object], tensor: str, by_model: dict[str, torch.Tensor]
) -> torch.Tensor:
    """One tensor merged by mergekit in float32, written in the dtype of its input."""
    used = {"linear": MODELS[1:], "slerp": MODELS[:2]}.get(method, MODELS)
    sources = [model for model in used if model != "base"]
    per_source = {"weight", "density", "epsilon", "gamma"}
    return merge_state_dicts(
        {model: {tensor: by_model[model]} for model in used},
        method,
        parameters={
            key: {**dict(zip(sources, value, strict=True))} if key in per_source else value  # type: ignore[call-overload]
            for key, value in parameters.items()
        },
        base=None if method == "linear" else "base",
        dtype=torch.float32,
        out_dtype=by_model["base"].dtype,
    )[tensor]


if __name__ == "__main__":
    main()
