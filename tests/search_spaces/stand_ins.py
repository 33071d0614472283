"""Models that are names alone: enough for a search space, which never looks at a tensor."""

from __future__ import annotations

from typing import Any

import numpy as np

from evomerge.checkpoints.anatomy import Anatomy, Place
from evomerge.documents import Document, read_yaml
from evomerge.files import catalogue_folder
from evomerge.merging import OPERATORS
from evomerge.recipe import Recipe
from evomerge.search_spaces import make_space, parse_space
from evomerge.search_spaces.codec import Codec
from evomerge.search_spaces.config import SpaceConfig
from evomerge.search_spaces.niches import Niches, NichesConfig

TENSORS = {
    "self_attn.q_proj.weight": "attention",
    "self_attn.o_proj.weight": "attention",
    "mlp.up_proj.weight": "mlp",
    "mlp.down_proj.weight": "mlp",
    "input_layernorm.weight": "norm",
    "post_attention_layernorm.weight": "norm",
}
OUTSIDE = {
    "model.embed_tokens.weight": "embedding",
    "model.norm.weight": "norm",
    "lm_head.weight": "head",
}


def llama(num_layers: int) -> Anatomy:
    """The anatomy of a Llama."""
    places = {name: Place(None, component) for name, component in OUTSIDE.items()}
    roles = {name: name for name in OUTSIDE}
    for layer in range(num_layers):
        for tensor, component in TENSORS.items():
            name = f"model.layers.{layer}.{tensor}"
            places[name] = Place(layer, component)
            roles[name] = f"model.layers.*.{tensor}"
    return Anatomy(places, num_layers, roles, dict.fromkeys(places, 1))


def named(codec: Codec, genome: list[float]) -> dict[str, Any]:
    """The values of the genes that matter, by name."""
    values = codec.values(genome)
    matters = zip(codec.genes, values, codec.active(values), strict=True)
    return {gene.name: value for gene, value, active in matters if active}


def template_of(experts: list[str], seed: int = 0) -> Recipe:
    return Recipe.model_validate(
        {
            "base": "base",
            "models": {name: f"/{name}" for name in ["base", *experts]},
            "default": {"operator": "linear"},
            "mask_seed": seed,
        }
    )


def experts_for(config: SpaceConfig, wanted: int) -> list[str]:
    """So many experts, or as many as the space's operator takes."""
    most = OPERATORS[config.operator].max_sources if hasattr(config, "operator") else None
    return [f"expert_{i}" for i in range(min(wanted, most or wanted))]


class Noise:
    """The parameters of models that there are not, for lineages."""

    total = 5000

    def read(self, model: str, start: int, stop: int) -> np.ndarray:
        seed = int(model.removeprefix("expert_"))
        return np.random.default_rng(seed).standard_normal(self.total)[start:stop]


def catalogue_space(name: str, num_layers: int, num_experts: int) -> Any:
    """A space of the catalogue over stand-ins."""
    config = parse_space(read_yaml(catalogue_folder("search_spaces") / f"{name}.yaml"))
    template = template_of(experts_for(config, num_experts))
    if isinstance(config, NichesConfig):
        return Niches(config, template, llama(num_layers), seeds=Noise())
    return make_space(config, template, llama(num_layers))


def space_of(data: dict[str, Any], num_layers: int = 6, num_experts: int = 3) -> Any:
    """A space of a file's content over stand-ins."""
    config = parse_space(Document(data))
    return make_space(config, template_of(experts_for(config, num_experts)), llama(num_layers))
