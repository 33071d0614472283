"""mergekit-evolve's file as an experiment: the same merges, tasks, start and budget.

Every merge that mergekit 0.1.5 makes of a genotype within the ranges here is a point of the space,
and mergekit's first genotype is where the search begins. What differs is told in notes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from evomerge.checkpoints.anatomy import Anatomy, anatomy_of
from evomerge.checkpoints.chat_template import template_of
from evomerge.checkpoints.open import Checkpoint, open_checkpoint
from evomerge.documents import Document, parse
from evomerge.errors import ConfigurationError, Problem, nearest
from evomerge.experiment.config import ExperimentConfig
from evomerge.experiment.mergekit_file import ModelRef
from evomerge.experiment.mergekit_genome import SEARCHED, EvolveFile
from evomerge.experiment.mergekit_names import found_path, short_name
from evomerge.experiment.mergekit_tasks import fitness_of, task_notes
from evomerge.experiment.wire import resolve
from evomerge.merging import OPERATORS
from evomerge.recipe import UNION, Merge, ModelSource, Recipe
from evomerge.search_spaces import make_space, parse_space
from evomerge.search_spaces.config import SpaceConfig
from evomerge.search_spaces.cube import CubeSpace
from evomerge.search_spaces.spots import first_fits

BUDGET = 100  # candidates; mergekit-evolve's --max-fevals
SIGMA = 1 / 6  # mergekit-evolve's --sigma0; here a share of each gene's range
LARGEST = 2.0  # weight, where weights are not divided by their sum
SCORES = (-2.0, 2.0)  # of models for slerp: the second one's share goes down to 1/(1 + e^4)
STRAIGHT = 0.9995  # |cosine| above which mergekit's slerp is a straight line
DRAW = 1  # the stream of random_init


def experiment_of(document: Document) -> tuple[ExperimentConfig, tuple[str, ...]]:
    """The experiment of a file of mergekit-evolve, and notes on what is not as there.

    The base's headers and small files are read: for the number of layers, and its chat template.

    Raises:
        ConfigurationError: every problem of the file.
        ModelError: the base cannot be read.
    """
    file = parse(EvolveFile, document)
    plan = _Plan(file, document)
    tokenizer, problems = plan.tokenizer()
    problems += plan.layer_problems()
    try:
        has_chat = file.apply_chat_template and plan.has_template(tokenizer)
        fitness = fitness_of(file, document, chat=has_chat)
    except ConfigurationError as error:
        problems += error.problems
    if problems:
        raise ConfigurationError(problems)
    space = plan.space()
    data: dict[str, Any] = {
        "name": document.path.stem if document.path else "",
        "base": plan.paths["base"],
        "experts": {name: plan.paths[name] for name in plan.experts},
        "space": space,
        "fitness": fitness,
        "searcher": {"kind": "cma_es", "x0": plan.first_mean(space), "sigma0": SIGMA},
        "budget": {"candidates": BUDGET},
        "dtype": "bfloat16",
        "tokenizer": tokenizer,
    }
    notes = (*plan.notes(), *task_notes(file, chat=has_chat))
    return parse(ExperimentConfig, Document(data)), notes


@dataclass
class _Plan:
    """Works out models, space and start."""

    file: EvolveFile
    document: Document
    paths: dict[str, str] = field(default_factory=dict)  # of models, by name
    names: dict[ModelRef, str] = field(default_factory=dict)  # of experts

    def __post_init__(self) -> None:
        self.genome = self.file.genome
        self.paths["base"] = found_path(self.genome.base.path, self.document)
        for ref in self.genome.experts:
            path = found_path(ref.lora or ref.path, self.document)
            name = short_name(path, self.paths, reserved=("base", "uniform", UNION))
            if name.startswith("task_arithmetic"):  # as references are called
                name = f"model_{name}"
            self.paths[name], self.names[ref] = path, name

    @property
    def experts(self) -> list[str]:
        """Their names, in the file's order."""
        return list(self.names.values())

    def opened(self, name: str) -> Checkpoint:
        """A model's headers and small files."""
        return open_checkpoint(resolve(self.paths[name]), name=name)

    @cached_property
    def anatomy(self) -> Anatomy:
        """The base's."""
        return anatomy_of(self.opened("base"))

    def tokenizer(self) -> tuple[str | None, list[Problem]]:
        """Whose tokens the merged model has, by evomerge's names."""
        source = self.genome.tokenizer_source
        if source in (None, UNION, "base"):
            return source, []
        known = {self.genome.base.path: "base"}
        known |= {ref.path: n for ref, n in self.names.items() if ref.path not in known}
        if source in known:
            return known[source], []
        where = self.document.where(("genome", "tokenizer_source"))
        what = f"{source!r} is none of the models"
        return None, [Problem(where, what, nearest(str(source), [UNION, "base", *known]))]

    def has_template(self, tokenizer: str | None) -> bool:
        """Whether the merged model will have a chat template."""
        owner = "base" if tokenizer in (None, UNION) else str(tokenizer)
        return template_of(self.opened(owner)) is not None

    def layer_problems(self) -> list[Problem]:
        """A granularity that does not fit the layers, and filters that fit no tensor."""
        problems = []
        size, layers = self.genome.layer_granularity, self.anatomy.num_layers
        if size and layers % size:
            divisors = ", ".join(str(d) for d in range(1, layers + 1) if layers % d == 0)
            where = self.document.where(("genome", "layer_granularity"))
            what = f"{size} does not divide the {layers} layers"
            problems.append(Problem(where, what, f"valid: 0, {divisors}"))
        words = {word for name in self.anatomy.places for word in name.split(".")}
        fits = first_fits(self.anatomy.places, self.genome.parts)
        for number, (part, found) in enumerate(fits.items()):
            if not found:
                where = self.document.where(("genome", "filters", number))
                what = f"{part!r} is in no tensor's name that the filters before it leave"
                problems.append(Problem(where, what, nearest(part, words)))
        return problems

    # --- the space --------------------------------------------------------------------------------

    @property
    def weights(self) -> tuple[float, float]:
        """The range of weights."""
        high = 1.0 if self.genome.divides else LARGEST
        return (-high if self.genome.allow_negative_weights else 0.0), high

    @property
    def lone_weight(self) -> bool:
        """Whether a weight is divided by itself, so that nothing hangs on it."""
        return self.genome.divides and len(self.names) == 1

    def space(self) -> SpaceConfig:
        """Points of it are genotypes."""
        genome = self.genome
        if genome.merge_method == "slerp":
            return parse_space(Document(self._slerp()))
        every: dict[str, Any] = {"per": ["expert"], "filters": list(genome.parts)}
        size = genome.layer_granularity
        num_groups = self.anatomy.num_layers // size if size else 1
        has_curves = genome.smooth and num_groups > 1  # through one value there is none
        if has_curves:
            every |= {"knots": num_groups, "outside": "first"}
        elif size and not genome.smooth:
            every |= {"per": ["expert", "layer"], "layers_per_group": size, "apart": []}
        ranges = {"weight": self.weights, "density": (0.0, 1.0)}
        search = {name: {**every, "range": ranges[name]} for name in SEARCHED[genome.merge_method]}
        fixed: dict[str, Any] = {"normalize": genome.divides}
        if any(one.name == "compat" for one in OPERATORS[genome.merge_method].parameters):
            fixed["compat"] = "mergekit"
        if self.lone_weight:
            del search["weight"]
            fixed["weight"] = 1.0
        kind = "depth_profile" if has_curves else "weights"
        data = {"kind": kind, "operator": genome.merge_method, "search": search, "fixed": fixed}
        return parse_space(Document(data))

    def _slerp(self) -> dict[str, Any]:
        """In each group, between the two models with the highest scores."""
        scores = {"per": ["expert"], "values": "pair", "range": SCORES}
        merge = {
            "operator": "nuslerp",
            "search": {"weight": scores},
            "fixed": {"straight_above": STRAIGHT},
        }
        size = self.genome.layer_granularity
        return {
            "kind": "layer_choice",
            "layers": {"experts": False, "merges": {"slerp": merge}},
            "outside": "ends",
            **({"layers_per_group": size} if size else {"layer_groups": 1}),
        }

    def first_mean(self, config: SpaceConfig) -> list[float]:
        """The first genotype there: equal weights and full densities, or uniform random values."""
        template = Recipe(
            base="base",
            models={name: ModelSource(path=path) for name, path in self.paths.items()},
            default=Merge(operator="linear"),
        )
        space = make_space(config, template, self.anatomy)
        if not isinstance(space, CubeSpace):
            raise TypeError(f"{config.kind}: no codec")
        generator = np.random.default_rng(np.random.SeedSequence(DRAW))
        values: dict[str, Any] = {}
        for gene in space.genes:
            first = 1.0 if gene.name.startswith("density.") else 1 / len(self.genome.models)
            values[gene.name] = float(generator.random()) if self.file.random_init else first
        return [float(coordinate) for coordinate in space.codec.genome(values)]

    # --- what is otherwise ------------------------------------------------------------------------

    def notes(self) -> Iterator[str]:
        """What the merges and the search do otherwise than mergekit-evolve."""
        genome = self.genome
        yield (
            "mergekit-evolve rounds models and arithmetic to bfloat16; evomerge computes in "
            "float32 and rounds the result to bfloat16, once"
        )
        if genome.base_model is None:
            yield f"the base, which the merges do not read, is the first model: {genome.base.path}"
        if self.lone_weight:
            yield "the weight of the only model is divided by itself, so it is not searched"
        if len(genome.experts) < len(genome.models):
            yield "the base's own genes change nothing there; here it has none"
        if len(genome.parts) < len(genome.filters or ()):
            yield "filters from `*` on fit nothing that is left: they have no genes"
        if genome.merge_method == "slerp":
            yield (
                f"mergekit-evolve's search has no bounds; here scores lie in {list(SCORES)}, in "
                "steps of 0.0001, so that a share differs from mergekit's by 0.000025 at most"
            )
            return
        has_densities = "density" in SEARCHED[genome.merge_method]
        yield (
            "mergekit-evolve's search has no bounds; here weights lie in "
            f"[{self.weights[0]:g}, {self.weights[1]:g}]"
            f"{', densities in [0, 1]' if has_densities else ''}"
        )
        if genome.merge_method == "dare_ties":
            yield "the random masks are evomerge's own: mergekit draws others"
        if genome.merge_method in ("ties", "dare_ties") and genome.divides and self.weights[0] < 0:
            yield (
                "candidates with weights of both signs fail: where signs differ, next to nothing "
                "is left to normalise by; consider normalize: false"
            )
