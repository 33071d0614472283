"""Search spaces: which merges are possible, and what a genome means."""

from __future__ import annotations

from evomerge.checkpoints.anatomy import Anatomy
from evomerge.documents import Document, parse
from evomerge.errors import ConfigurationError, Problem, nearest
from evomerge.protocols import SearchSpace
from evomerge.recipe import Recipe
from evomerge.search_spaces.weights import Weights, WeightsConfig

SPACES: dict[str, tuple[type[Weights], type[WeightsConfig]]] = {
    "weights": (Weights, WeightsConfig),
}


def parse_space(document: Document) -> WeightsConfig:
    """Validate a search space file against its kind.

    Raises:
        ConfigurationError: with every problem and its line.
    """
    kind = document.data.get("kind") if isinstance(document.data, dict) else None
    if kind not in SPACES:
        hint = nearest(str(kind), SPACES)
        raise ConfigurationError(Problem(document.where(("kind",)), f"unknown kind {kind!r}", hint))
    return parse(SPACES[kind][1], document)


def make_space(config: WeightsConfig, template: Recipe, anatomy: Anatomy) -> SearchSpace:
    """The space over a family of models; `template` holds what all its recipes share."""
    return SPACES[config.kind][0](config, template, anatomy)
