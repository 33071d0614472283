"""Writes golden/fusionbench.safetensors: what FusionBench computes for small families of models.

Run it by hand where fusion-bench 0.2.33, accelerate and peft are installed:
`python tests/merging/make_golden_fusionbench.py`; tests read what it has written, by
golden_fusionbench.py. The models are ours, made from a seed: some methods look at whole models, so
every case merges a whole family, in float64. The file holds, in float32,

    in/{family}/{model}/{tensor}     the base and its experts
    out/{case}/{family}/{tensor}     what FusionBench makes of them

and, in its metadata, the versions and the cases: {case: [method, parameters, experts, families]}.

To add a method: a function in METHODS that takes the models (by name, the base first) and the
case's parameters, and rows of CASES. To add inputs: a function in FAMILIES.
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

TARGET = Path(__file__).parent / "golden" / "fusionbench.safetensors"

State = dict[str, Tensor]
States = dict[str, State]  # by model, the base first

# A weight that is no linear layer's: nn.Embedding where a method asks for modules.
EMBEDDING = "embed.weight"
SHAPES = {
    EMBEDDING: (14, 5),
    "tall.weight": (12, 6),
    "wide.weight": (5, 11),
    "square.weight": (7, 7),
    "odd.weight": (13, 10),
    "small.weight": (2, 3),
    "norm.weight": (6,),
}
MODELS = ("base", "a", "b", "c")


# --- what goes in ---------------------------------------------------------------------------------


def ordinary() -> States:
    """Task vectors of full rank, half as long as the base; one expert's are longer."""
    generator = torch.Generator().manual_seed(20250103)

    def normal(shape: tuple[int, ...]) -> Tensor:
        return torch.randn(shape, generator=generator)

    base = {name: normal(shape) for name, shape in SHAPES.items()}
    states = {"base": base}
    for model, length in zip(MODELS[1:], (0.5, 0.5, 1.5), strict=True):
        states[model] = {
            name: base[name] + length * normal(shape) for name, shape in SHAPES.items()
        }
    return states


def decaying() -> States:
    """Task vectors whose singular values fall by some powers of ten, with a direction in common."""
    generator = torch.Generator().manual_seed(20250104)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    def task_vector(shape: tuple[int, ...], common: Tensor) -> Tensor:
        if len(shape) == 1:
            return 0.01 * normal(*shape)
        rows, columns = (torch.linalg.qr(normal(size, min(shape))).Q for size in shape)
        sizes = 10 ** -torch.linspace(0, 2.5, min(shape), dtype=torch.float64)
        return 0.1 * (rows * sizes) @ columns.T + common

    base = {name: normal(*shape) for name, shape in SHAPES.items()}
    common = {
        name: 0.05 * torch.outer(normal(shape[0]), normal(shape[1])) if len(shape) == 2 else 0 * b
        for (name, shape), b in zip(SHAPES.items(), base.values(), strict=True)
    }
    states = {"base": base}
    for model in MODELS[1:]:
        states[model] = {
            name: base[name] + task_vector(shape, common[name]) for name, shape in SHAPES.items()
        }
    return {m: {name: value.float() for name, value in s.items()} for m, s in states.items()}


def rootless() -> States:
    """Task vectors on a base of zeros: the only one on which FusionBench's own TALL masks are."""
    base, *experts = ordinary().values()
    zero = {name: torch.zeros_like(value) for name, value in base.items()}
    moves = [{name: expert[name] - base[name] for name in base} for expert in experts]
    return dict(zip(MODELS, (zero, *moves), strict=True))


FAMILIES: dict[str, Callable[[], States]] = {
    "ordinary": ordinary,
    "decaying": decaying,
    "rootless": rootless,
}


# --- what merges them -----------------------------------------------------------------------------


def task_vectors(states: States) -> tuple[State, list[State]]:
    """The base, and the experts less the base."""
    base, *experts = states.values()
    return base, [{name: expert[name] - base[name] for name in base} for expert in experts]


def moved(base: State, shift: State, scale: float) -> State:
    """The base and a scaled shift, as FusionBench's scaling_factor does."""
    return {name: base[name] + scale * shift[name] for name in base}


def iso_c(states: States, alpha: float = 1.0) -> State:
    """Isotropic merging in the common subspace."""
    from fusion_bench.method.isotropic_merging import iso_utils

    base, taus = task_vectors(states)
    return moved(base, iso_utils.iso_c(taus, accelerator="cpu"), alpha)


def iso_cts(states: States, alpha: float = 1.0, common: float = 0.8) -> State:
    """Isotropic merging in common and task-specific subspaces."""
    from fusion_bench.method.isotropic_merging import iso_utils

    base, taus = task_vectors(states)
    shift = iso_utils.iso_cts(taus, common_space_fraction=common, accelerator="cpu")
    return moved(base, shift, alpha)


def tsv_m(states: States, alpha: float = 1.0) -> State:
    """Task singular vectors, merged."""
    from fusion_bench.method.task_singular_vector.utils import TSVM_utils

    base, taus = task_vectors(states)
    return moved(base, TSVM_utils.compute_and_sum_svd_mem_reduction(taus, accelerator="cpu"), alpha)


class Pool:
    """As much of a model pool as OPCM asks for."""

    def __init__(self, states: States) -> None:
        self._states = states
        self.model_names = list(states)[1:]

    def load_pretrained_model(self) -> nn.Module:
        """The base."""
        return as_modules(self._states["base"])

    def load_model(self, name: str) -> nn.Module:
        """An expert."""
        return as_modules(self._states[name])


def as_modules(state: State) -> nn.Module:
    """Linear layers for matrices, an embedding for the embedding, plain parameters else."""
    model = nn.Module()
    for name, value in state.items():
        owner, _ = name.split(".")
        module: nn.Module
        if name == EMBEDDING:
            module = nn.Embedding(*value.shape)
        elif value.dim() == 2:
            module = nn.Linear(value.shape[1], value.shape[0], bias=False)
        else:
            module = nn.Module()
        module.weight = nn.Parameter(value.clone(), requires_grad=False)
        model.add_module(owner, module)
    return model


def opcm(states: States, alpha: float = 0.5) -> State:
    """Sequential projection, in the given order."""
    # Its package imports CLIP's tasks, which newer transformers break; OPCM itself needs none.
    tasks = types.ModuleType("fusion_bench.taskpool")
    tasks.CLIPVisionModelTaskPool = object  # type: ignore[attr-defined]
    sys.modules["fusion_bench.taskpool"] = tasks
    from fusion_bench.method.opcm.opcm_general import OPCM

    algorithm = OPCM(alpha=alpha, shuffle_order=False, save_on_every_step=False)
    return dict(algorithm.run(Pool(states)).state_dict())


def magmax(states: States, scale: float = 0.5) -> State:
    """Maximum magnitude selection."""
    from fusion_bench.method.magmax import magmax_merge

    base, *experts = (as_modules(state) for state in states.values())
    return dict(magmax_merge(base, experts, scaling_factor=scale).state_dict())


def tall_masks(states: States, thresholds: list[float]) -> tuple[State, State, list[State]]:
    """The base, the sum of the task vectors and all masks, by its copy of the authors' functions.

    thresholds: one for each expert.
    """
    from fusion_bench.method.tall_mask.utils import generate_task_masks

    base, taus = task_vectors(states)
    total = {name: torch.stack([tau[name] for tau in taus]).sum(0) for name in base}
    masks = [
        {
            name: generate_task_masks(
                taus[k][name], expert[name], base[name], total[name], thresholds[k]
            )
            for name in base
        }
        for k, expert in enumerate(list(states.values())[1:])
    ]
    return base, total, masks


def tall_mask(states: States, threshold: float) -> State:
    """The first expert, recovered by its mask."""
    base, total, masks = tall_masks(states, [threshold] * (len(states) - 1))
    return {name: base[name] + masks[0][name] * total[name] for name in base}


def tall_mask_own(states: States, threshold: float) -> State:
    """The same by FusionBench's own function, which compares a weight with a task vector.

    Its algorithm cannot be run: it refuses the parameters of modules beside plain tensors.
    """
    from fusion_bench.method.tall_mask.task_arithmetic import generate_task_masks

    base, taus = task_vectors(states)
    total = {name: sum(tau[name] for tau in taus) for name in base}
    mask = generate_task_masks(total, taus[0], base, threshold)  # type: ignore[arg-type]
    return {name: base[name] + mask[name] * total[name] for name in base}


def consensus_ta(states: States, thresholds: list[float], min_tasks: int, scale: float) -> State:
    """The sum of the task vectors where so many masks are set."""
    from fusion_bench.method.tall_mask import utils

    base, total, masks = tall_masks(states, thresholds)
    by_task = {str(k): mask for k, mask in enumerate(masks)}
    utils.load_tall_mask = lambda *_: by_task  # in place of a file
    found = utils.construct_consensus_mask(base, min_tasks, None)
    like = {name: value.clone() for name, value in base.items()}  # it writes into it
    agreed = utils.vector_to_state_dict(found, like)
    return {name: base[name] + scale * agreed[name] * total[name] for name in base}


METHODS: dict[str, Callable[..., State]] = {
    "magmax": magmax,
    "tall_mask": tall_mask,
    "tall_mask_own": tall_mask_own,
    "consensus_ta": consensus_ta,
    "iso_c": iso_c,
    "iso_cts": iso_cts,
    "tsv_m": tsv_m,
    "opcm": opcm,
}
BOTH = ("ordinary", "decaying")
# name: (method, its parameters, the experts in their order, the families)
CASES: dict[str, tuple[str, dict[str, Any], str, tuple[str, ...]]] = {
    "iso_c": ("iso_c", {}, "abc", BOTH),
    "iso_c_scaled": ("iso_c", {"alpha": 1.3}, "ab", BOTH),
    "iso_cts": ("iso_cts", {}, "abc", BOTH),
    "iso_cts_pair": ("iso_cts", {"common": 0.5, "alpha": 0.7}, "bc", BOTH),
    # Nothing in common, of an odd number of directions for two experts, FusionBench cannot do.
    "iso_cts_few": ("iso_cts", {"common": 0.3}, "ab", BOTH),
    "tsv_m": ("tsv_m", {}, "abc", BOTH),
    "tsv_m_scaled": ("tsv_m", {"alpha": 0.6}, "ab", BOTH),
    "opcm": ("opcm", {}, "abc", BOTH),
    "opcm_other_order": ("opcm", {"alpha": 0.2}, "cab", BOTH),
    "opcm_all": ("opcm", {"alpha": 0.9}, "ba", BOTH),
    "magmax": ("magmax", {}, "abc", BOTH),
    "magmax_scaled": ("magmax", {"scale": 0.8}, "cab", BOTH),
    "tall_mask": ("tall_mask", {"threshold": 0.4}, "abc", BOTH),
    "tall_mask_of_c": ("tall_mask", {"threshold": 1.2}, "cab", BOTH),
    "tall_mask_own": ("tall_mask_own", {"threshold": 0.3}, "abc", ("rootless",)),
    "consensus_ta": (
        "consensus_ta",
        {"thresholds": [0.2, 0.4, 0.6], "min_tasks": 2, "scale": 0.3},
        "abc",
        BOTH,
    ),
    "consensus_ta_one": (
        "consensus_ta",
        {"thresholds": [0.5, 0.3], "min_tasks": 1, "scale": 1.0},
        "bc",
        BOTH,
    ),
    "consensus_ta_all": (
        "consensus_ta",
        {"thresholds": [0.1, 0.1, 0.1], "min_tasks": 3, "scale": 0.7},
        "abc",
        BOTH,
    ),
}


def main() -> None:
    """Run every case and write the file."""
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    stored: State = {}
    for family, make in FAMILIES.items():
        for model, state in make().items():
            stored |= {f"in/{family}/{model}/{name}": value for name, value in state.items()}
    for case, (method, parameters, experts, families) in CASES.items():
        for family in families:
            models = FAMILIES[family]()
            # In float64, so that what a test finds is not the oracle's own rounding.
            states = {m: {n: v.double() for n, v in models[m].items()} for m in ("base", *experts)}
            merged = METHODS[method](states, **parameters)
            stored |= {f"out/{case}/{family}/{n}": value.float() for n, value in merged.items()}
    versions = {name: importlib.metadata.version(name) for name in ("fusion-bench", "torch")}
    save_file(
        {name: value.detach().contiguous().clone() for name, value in stored.items()},
        TARGET,
        metadata={"versions": json.dumps(versions), "cases": json.dumps(CASES)},
    )


if __name__ == "__main__":
    main()
