"""Search spaces: which merges are possible, and what a genome means."""

from __future__ import annotations

from typing import Any, NamedTuple

from evomerge.checkpoints.anatomy import Anatomy
from evomerge.documents import Document, parse
from evomerge.errors import ConfigurationError, Problem, nearest
from evomerge.protocols import SearchSpace
from evomerge.recipe import Recipe
from evomerge.search_spaces.config import SpaceConfig
from evomerge.search_spaces.depth_profile import DepthProfile, DepthProfileConfig
from evomerge.search_spaces.layer_choice import LayerChoice, LayerChoiceConfig
from evomerge.search_spaces.layer_pruning import LayerPruning, LayerPruningConfig
from evomerge.search_spaces.layer_stack import LayerStackConfig, make_layer_stack
from evomerge.search_spaces.layer_swap import LayerSwap, LayerSwapConfig
from evomerge.search_spaces.layer_walk import LayerWalk, LayerWalkConfig
from evomerge.search_spaces.masks import Masks, MasksConfig
from evomerge.search_spaces.weights import Weights, WeightsConfig


class Kind(NamedTuple):
    """A kind of search space: what its files say, and what is made of them."""

    config: type[SpaceConfig]
    space: Any  # called with (config, template, anatomy)
    summary: str


SPACES: dict[str, Kind] = {
    "weights": Kind(
        WeightsConfig, Weights, "an operator's parameters: shared, or per expert, layer, component"
    ),
    "depth_profile": Kind(
        DepthProfileConfig, DepthProfile, "parameters as curves over depth: straight, or by knots"
    ),
    "masks": Kind(MasksConfig, Masks, "which layers and components take part in a merge at all"),
    "layer_choice": Kind(
        LayerChoiceConfig, LayerChoice, "each layer from one model, or from a merge of several"
    ),
    "layer_swap": Kind(
        LayerSwapConfig, LayerSwap, "bottom and top from one expert, the middle from another"
    ),
    "layer_pruning": Kind(
        LayerPruningConfig, LayerPruning, "exactly so many layers less; the rest as layer_choice"
    ),
    "layer_stack": Kind(
        LayerStackConfig, make_layer_stack, "layers of several models in one stack, with scales"
    ),
    "layer_walk": Kind(
        LayerWalkConfig, LayerWalk, "a walk through the layers: take, skip, go back"
    ),
}


def parse_space(document: Document) -> SpaceConfig:
    """Validate a search space file against its kind.

    Raises:
        ConfigurationError: with every problem and its line.
    """
    kind = document.data.get("kind") if isinstance(document.data, dict) else None
    if not isinstance(kind, str) or kind not in SPACES:
        hint = nearest(str(kind), SPACES)
        raise ConfigurationError(Problem(document.where(("kind",)), f"unknown kind {kind!r}", hint))
    return parse(SPACES[kind].config, document)


def make_space(config: SpaceConfig, template: Recipe, anatomy: Anatomy) -> SearchSpace:
    """The space over a family of models; `template` holds what all its recipes share.

    Raises:
        ConfigurationError: the file asks for what these models do not have, or for genes that can
            never matter.
    """
    space: SearchSpace = SPACES[config.kind].space(config, template, anatomy)
    return space
