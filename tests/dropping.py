"""A toy whose candidates may lack layers: a network with a stack of blocks, in memory."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from toys import NUM_ITEMS, Toy

from evomerge.checkpoints.anatomy import Anatomy
from evomerge.experiment import wire
from evomerge.experiment.config import ExperimentConfig
from evomerge.experiment.wire import InMemory
from evomerge.fitness.python_task import PythonFitness
from evomerge.genes import Real
from evomerge.recipe import Recipe, Slot
from evomerge.records import Genome
from evomerge.search_spaces.weights import Weights

WIDTH, DEPTH = 6, 4
PROBES = torch.randn(2, NUM_ITEMS, WIDTH, generator=torch.Generator().manual_seed(2))


class Network(nn.Module):
    """Residual blocks and a head; every block has a size of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(WIDTH, 2 + 3 * i), nn.Tanh(), nn.Linear(2 + 3 * i, WIDTH))
            for i in range(DEPTH)
        )
        self.head = nn.Linear(WIDTH, 1)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + layer(x)
        return self.head(x)


def states() -> dict[str, dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(5)

    def state() -> dict[str, Tensor]:
        like = Network().state_dict()
        return {n: torch.randn(t.shape, generator=generator) for n, t in like.items()}

    return {"base": state(), "left": state(), "right": state()}


def fitness(module: nn.Module) -> dict[str, Any]:
    """0/1 answers to two tasks."""
    with torch.no_grad():
        answers = (module(PROBES).squeeze(-1) > 0).float()
    return {"first": answers[0], "second": answers[1]}


class Dropping:
    """A gene for each layer, which keeps it from .5 on, beside one weight for each expert."""

    def __init__(self, config: Any, template: Recipe, anatomy: Anatomy) -> None:
        self.weights = Weights(config, template, anatomy)
        self.num_layers = anatomy.num_layers
        keep = tuple(Real(f"keep.{layer}", 0.0, 1.0) for layer in range(anatomy.num_layers))
        self.genes = (*self.weights.genes, *keep)
        self.constraints = ()
        self.decoded: list[Genome] = []

    def decode(self, genome: Genome) -> Recipe:
        self.decoded.append(genome)
        kept = [i for i, value in enumerate(genome[-self.num_layers :]) if value >= 0.5]
        recipe = self.weights.decode(genome[: -self.num_layers])
        slots = tuple(Slot(layer=layer) for layer in kept or [0])
        return Recipe(**{**dict(recipe), "slots": slots})

    def encode(self, recipe: Recipe) -> Genome:
        return self.weights.encode(recipe) + [1.0] * self.num_layers

    def violations(self, genome: Genome) -> list[str]:
        return [] if len(genome) == len(self.genes) else ["another length"]

    def designs(self) -> list[Genome]:
        return [genome + [1.0] * self.num_layers for genome in self.weights.designs()]

    def alone(self) -> dict[str, Genome]:
        kept = [1.0] * self.num_layers
        return {name: genome + kept for name, genome in self.weights.alone().items()}

    def active(self, genome: Genome) -> list[bool]:
        return [True] * len(self.genes)

    def sample(self, generator: Any) -> Genome:
        return generator.random(len(self.genes)).tolist()


@dataclass(frozen=True)
class DroppingToy(Toy):
    """A search that may drop layers, for accuracy and for few parameters."""

    searcher: str = "nsga2"
    keys: dict[str, Any] = field(default_factory=dict)
    objectives: tuple[tuple[str, Any], ...] = (
        ("mean", {"tasks": ["first", "second"]}),
        ("size", {"cost": "parameters"}),
    )

    def config(self, budget: int | dict[str, Any] | None = None) -> ExperimentConfig:
        from evomerge.documents import Document
        from evomerge.experiment.config import parse_experiment

        data = super().config(budget).model_dump(mode="json", exclude_defaults=True)
        data["space"]["search"] = {"weight": {"per": ["expert"], "range": [0, 1.2]}}
        data["fitness"]["objectives"] = dict(self.objectives)
        data["fitness"].pop("select", None)
        return parse_experiment(Document(data))

    def given(self) -> InMemory:
        python = PythonFitness(fitness, "module")
        zeros = torch.zeros(NUM_ITEMS)
        return InMemory(states(), Network, python.tasks({"first": zeros, "second": zeros}))


@pytest.fixture
def dropping(monkeypatch: pytest.MonkeyPatch) -> list[Dropping]:
    """Searches are over Dropping; those that were made."""
    made: list[Dropping] = []

    def make(config: Any, template: Recipe, anatomy: Anatomy, models: Any) -> Dropping:
        made.append(Dropping(config, template, anatomy))
        return made[-1]

    monkeypatch.setattr(wire, "make_space", make)
    return made


def parameters_of(recipe: Recipe) -> int:
    """By torch, of the network with the recipe's blocks."""
    network = Network()
    blocks = [network.layers[slot.layer] for slot in recipe.slots or ()]
    own = blocks if recipe.slots is not None else list(network.layers)
    return sum(p.numel() for part in (*own, network.head) for p in part.parameters())


__all__ = ["Dropping", "DroppingToy", "Network", "dropping", "parameters_of"]
