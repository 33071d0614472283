"""Files of mergekit-evolve, and a genotype of each on which evomerge and mergekit have to agree."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
import torch
import yaml
from mergekit_cases import LAYERS
from mergekit_cases import states as other_states
from numpy.typing import NDArray
from torch import Tensor

from evomerge.experiment.mergekit_genome import SEARCHED

GENOMES: dict[str, dict[str, Any]] = {
    "linear": {"models": ["base", "a", "b"], "merge_method": "linear"},
    "linear_layers_filters": {
        "models": ["a", "b"],
        "merge_method": "linear",
        "layer_granularity": 1,
        "filters": ["mlp.down", "mlp", "embed"],
    },
    "linear_raw": {
        "models": ["a", "b"],
        "merge_method": "linear",
        "layer_granularity": 2,
        "normalize": False,
        "allow_negative_weights": True,
    },
    "linear_base_among_models": {
        "models": ["a", "b", "base"],
        "base_model": "base",
        "merge_method": "linear",
        "layer_granularity": 4,
    },
    "task_arithmetic": {
        "models": ["a", "b"],
        "base_model": "base",
        "merge_method": "task_arithmetic",
        "layer_granularity": 2,
        "allow_negative_weights": True,
    },
    "task_arithmetic_filters": {
        "models": ["a", "b"],
        "base_model": "base",
        "merge_method": "task_arithmetic",
        "layer_granularity": 2,
        "filters": ["self_attn", "layers.1", "norm", "*", "mlp"],
    },
    "task_arithmetic_normalized": {
        "models": ["a", "base", "b"],
        "base_model": "base",
        "merge_method": "task_arithmetic",
        "normalize": True,
    },
    "task_arithmetic_smooth": {
        "models": ["a", "b"],
        "base_model": "base",
        "merge_method": "task_arithmetic",
        "layer_granularity": 1,
        "smooth": True,
    },
    "task_arithmetic_smooth_filters": {
        "models": ["a", "b"],
        "base_model": "base",
        "merge_method": "task_arithmetic",
        "layer_granularity": 2,
        "filters": ["o_proj", "lm_head", "mlp"],
        "smooth": True,
        "allow_negative_weights": True,
    },
    "ties": {"models": ["a", "b"], "base_model": "base", "merge_method": "ties"},
    "ties_layers_filters": {
        "models": ["a", "b"],
        "base_model": "base",
        "merge_method": "ties",
        "layer_granularity": 2,
        "filters": ["q_proj", "mlp"],
    },
    "ties_raw": {
        "models": ["a", "b"],
        "base_model": "base",
        "merge_method": "ties",
        "normalize": False,
        "allow_negative_weights": True,
        "filters": ["mlp"],
    },
    "ties_smooth": {
        "models": ["a", "b"],
        "base_model": "base",
        "merge_method": "ties",
        "layer_granularity": 2,
        "smooth": True,
    },
    "ties_alone": {
        "models": ["a"],
        "base_model": "base",
        "merge_method": "ties",
        "layer_granularity": 1,
    },
    "dare_ties_dense": {
        "models": ["a", "b"],
        "base_model": "base",
        "merge_method": "dare_ties",
        "layer_granularity": 1,
    },
    "slerp": {"models": ["a", "b"], "merge_method": "slerp"},
    "slerp_near": {
        "models": ["near", "base"],
        "merge_method": "slerp",
        "layer_granularity": 2,
    },
    "slerp_layers": {
        "models": ["base", "a", "b"],
        "merge_method": "slerp",
        "layer_granularity": 1,
    },
    "slerp_base_among_models": {
        "models": ["a", "base", "b"],
        "base_model": "base",
        "merge_method": "slerp",
        "layer_granularity": 2,
    },
}


def states() -> dict[str, dict[str, Tensor]]:
    """The models of the other cases, and one so near to the base that slerp goes straight."""
    made = other_states()
    generator = torch.Generator().manual_seed(31)
    made["near"] = {
        name: tensor + 0.02 * torch.randn(tensor.shape, generator=generator)
        for name, tensor in made["base"].items()
    }
    return made


def evolve_file(case: str) -> str:
    """The file of a case."""
    return yaml.safe_dump({"genome": GENOMES[case], "tasks": ["some_task"]}, sort_keys=False)


def num_groups(genome: dict[str, Any]) -> int:
    """Groups of layers."""
    size = genome.get("layer_granularity", 0)
    return LAYERS // size if size else 1


def genotype(case: str) -> NDArray[np.float64]:
    """A random genotype, (groups, models, filters and the rest, parameters).

    Values have four decimals, as the coarsest genes have. Weights that mergekit makes positive are
    negative here and there; densities go beyond 1, where mergekit cuts them off.
    """
    genome = GENOMES[case]
    generator = np.random.default_rng(zlib.crc32(case.encode()))
    searched = SEARCHED[genome["merge_method"]]
    sets = len(genome.get("filters", ())) + 1
    shape = num_groups(genome), len(genome["models"]), sets, len(searched)
    values = generator.uniform(0.05, 1.0, shape)
    if genome.get("allow_negative_weights"):
        values[..., 0] = generator.uniform(-0.6, 1.6, shape[:-1])
    elif searched[0] == "weight":
        values[..., 0] *= generator.choice([-1.0, 1.0], shape[:-1])
    if "density" in searched:
        low = 1.0 if genome["merge_method"] == "dare_ties" else 0.2
        values[..., 1] = generator.uniform(low, 1.3, shape[:-1])
    return np.round(values, 4)
