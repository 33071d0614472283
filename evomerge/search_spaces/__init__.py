"""Search spaces: which merges are possible, and what a genome means."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from evomerge.checkpoints.anatomy import Anatomy
from evomerge.documents import Document, parse
from evomerge.errors import ConfigurationError, Problem, nearest
from evomerge.merging.flat_order import FlatModels
from evomerge.protocols import SearchSpace
from evomerge.recipe import Recipe
from evomerge.search_spaces.config import SpaceConfig
from evomerge.search_spaces.depth_profile import DepthProfile, DepthProfileConfig
from evomerge.search_spaces.layer_choice import LayerChoice, LayerChoiceConfig
from evomerge.search_spaces.layer_pruning import LayerPruning, LayerPruningConfig
from evomerge.search_spaces.layer_stack import LayerStackConfig
from evomerge.search_spaces.layer_swap import LayerSwap, LayerSwapConfig
from evomerge.search_spaces.layer_walk import LayerWalk, LayerWalkConfig
from evomerge.search_spaces.masks import Masks, MasksConfig
from evomerge.search_spaces.niches import Niches, NichesConfig
from evomerge.search_spaces.stack_by_position import ByPosition
from evomerge.search_spaces.stack_in_a_row import InARow
from evomerge.search_spaces.weights import Weights, WeightsConfig

if TYPE_CHECKING:
    from evomerge.checkpoints.open import Checkpoint


def make_layer_stack(
    config: LayerStackConfig, template: Recipe, anatomy: Anatomy
) -> InARow | ByPosition:
    """The space with the file's arrangement."""
    kind = InARow if config.arrange == "in_a_row" else ByPosition
    return kind(config, template, anatomy)


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
    "niches": Kind(NichesConfig, Niches, "lineages: descendants by SLERP of split parents (M2N2)"),
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


def make_space(
    config: SpaceConfig,
    template: Recipe,
    anatomy: Anatomy,
    checkpoints: Mapping[str, Checkpoint] | None = None,
) -> SearchSpace:
    """The space over a family of models.

    Args:
        config: of the file.
        template: what all recipes of the space share.
        anatomy: the base's.
        checkpoints: the models, which a space of lineages reads; all others do with their names.

    Raises:
        ConfigurationError: the file asks for what these models do not have, or for genes that can
            never matter.
    """
    if isinstance(config, NichesConfig):
        seeds = FlatModels(checkpoints, template.base) if checkpoints is not None else None
        return Niches(config, template, anatomy, seeds=seeds)
    space: SearchSpace = SPACES[config.kind].space(config, template, anatomy)
    return space
