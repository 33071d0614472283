"""Writes golden/mergekit_others.safetensors: mergekit outside the task-vector family.

Run it where mergekit 0.1.5 is installed: `python tests/merging/make_golden_others.py`. The inputs
are those of make_golden.py and a few that tell these methods apart; they are stored beside what
mergekit makes of them, so that either file can be made again alone.
"""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path

import torch
from make_golden import MODELS, inputs
from mergekit.merge_methods import merge_state_dicts
from safetensors.torch import save_file

TARGET = Path(__file__).parent / "golden" / "mergekit_others.safetensors"

WEIGHTS = [0.7, 0.2, 0.4]
SIGNED = [0.7, -0.3, 0.4]
# mergekit chooses among equal variances as its sort likes.
TIED = ("tied", "constant")
# For three models whose directions cancel or that have none, mergekit's multislerp is an error.
UNDIRECTED = ("null", "tiny", "opposite")
# Of two opposite directions mergekit's answer hangs on whether their cosine is rounded to -1.
OPPOSITE = ("opposite",)
# name: (mergekit's method, its parameters, models that go in, the base's name, tensors left out)
Case = tuple[str, dict[str, object], str, str | None, tuple[str, ...]]
CASES: dict[str, Case] = {
    "nuslerp": ("nuslerp", {"weight": [0.7, 0.2]}, "ab", None, OPPOSITE),
    "nuslerp_signed": ("nuslerp", {"weight": [1.5, -0.5]}, "bc", None, ()),
    "nuslerp_rows": (
        "nuslerp",
        {"weight": [0.4, 0.6], "nuslerp_flatten": False},
        "ab",
        None,
        OPPOSITE,
    ),
    "nuslerp_columns": (
        "nuslerp",
        {"weight": [0.4, 0.6], "nuslerp_flatten": False, "nuslerp_row_wise": True},
        "bc",
        None,
        (),
    ),
    "nuslerp_deltas": ("nuslerp", {"weight": [0.3, 0.7]}, "bc", "base", ()),
    "nuslerp_deltas_rows": (
        "nuslerp",
        {"weight": [0.3, 0.7], "nuslerp_flatten": False},
        "bc",
        "base",
        (),
    ),
    "multislerp": ("multislerp", {"weight": WEIGHTS}, "abc", None, UNDIRECTED),
    "multislerp_sum": (
        "multislerp",
        {"weight": SIGNED, "normalize_weights": False},
        "abc",
        None,
        UNDIRECTED,
    ),
    "multislerp_deltas": ("multislerp", {"weight": WEIGHTS}, "abc", "base", UNDIRECTED),
    "multislerp_pair": ("multislerp", {"weight": [0.5, 0.5]}, "ab", None, ()),
    "karcher": ("karcher", {}, "abc", None, ()),
    "karcher_short": ("karcher", {"max_iter": 2, "tol": 1e-3}, "abc", None, ()),
    "karcher_pair": ("karcher", {}, "ab", None, OPPOSITE),
    "model_stock": ("model_stock", {}, "abc", "base", ()),
    "model_stock_pair": ("model_stock", {}, "bc", "base", ()),
    "model_stock_rows": ("model_stock", {"filter_wise": True}, "abc", "base", ()),
    "sce": ("sce", {}, "abc", "base", ()),
    "sce_half": ("sce", {"select_topk": 0.5}, "abc", "base", TIED),
    "sce_few": ("sce", {"select_topk": 0.05}, "abc", "base", TIED),
    "sce_none": ("sce", {"select_topk": 0.0}, "abc", "base", ()),
    "arcee_fusion": ("arcee_fusion", {}, "a", "base", ()),
    "nearswap": ("nearswap", {"t": 0.1}, "a", "base", ()),
    "nearswap_little": ("nearswap", {"t": 1e-4}, "b", "base", ()),
    "passthrough": ("passthrough", {}, "a", None, ()),
    "passthrough_scaled": ("passthrough", {"scale": -0.6}, "a", None, ()),
    "ram": ("ram", {}, "abc", "base", ()),
    "ram_coarse": ("ram", {"epsilon": 0.5}, "abc", "base", ()),
    "ramplus_tl": ("ramplus_tl", {}, "abc", "base", ()),
    "ramplus_tl_coarse": (
        "ramplus_tl",
        {"epsilon": 0.8, "r": 0.5, "alpha": 3.0},
        "abc",
        "base",
        (),
    ),
}


def more_inputs() -> dict[str, dict[str, torch.Tensor]]:
    """Short task vectors, as fine-tunes make them; bfloat16; three dimensions; some sparse."""
    generator = torch.Generator().manual_seed(20250102)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    base = normal(8, 6)
    half, moved = normal(6, 8).bfloat16(), torch.rand((4, 7, 5), generator=generator)
    return {
        "short": {m: base * 0.02 + 1e-4 * (m != "base") * normal(8, 6) for m in MODELS},
        "half": {m: (half + 0.1 * (m != "base") * normal(6, 8)).bfloat16() for m in MODELS},
        "cube": {m: normal(3, 4, 5) for m in MODELS},
        "sparse": {m: moved[0] + (moved[i] > 0.5) * normal(7, 5) for i, m in enumerate(MODELS)},
    }


def merged(case: Case, tensor: str, by_model: dict[str, torch.Tensor]) -> torch.Tensor:
    """One tensor merged by mergekit in float32, written in the dtype of its input."""
    method, parameters, sources, base, _ = case
    models = [*([base] if base else []), *sources]
    return merge_state_dicts(
        {model: {tensor: by_model[model]} for model in models},
        method,
        parameters={
            key: dict(zip(sources, value, strict=True)) if isinstance(value, list) else value
            for key, value in parameters.items()
        },
        base=base,
        dtype=torch.float32,
        out_dtype=by_model["base"].dtype,
    )[tensor]


def main() -> None:
    """Run every case on every tensor and write the file."""
    torch.set_num_threads(1)
    stored = {}
    for tensor, by_model in (inputs() | more_inputs()).items():
        stored |= {f"in/{tensor}/{model}": value for model, value in by_model.items()}
        for name, case in CASES.items():
            if tensor not in case[-1]:
                stored[f"out/{name}/{tensor}"] = merged(case, tensor, by_model)
    versions = {name: importlib.metadata.version(name) for name in ("mergekit", "torch")}
    save_file(
        {name: value.contiguous().clone() for name, value in stored.items()},
        TARGET,
        metadata={"versions": json.dumps(versions), "cases": json.dumps(CASES)},
    )


if __name__ == "__main__":
    main()
