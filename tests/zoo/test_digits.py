"""The pair of networks for digits, and the experiment that breeds from it."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from sklearn.datasets import load_digits
from torch import Tensor, nn

import evomerge
from evomerge.errors import ConfigurationError
from evomerge.experiment.config import BudgetConfig, read_experiment
from evomerge.experiment.recorded import read_run
from evomerge.experiment.run import run_experiment
from evomerge.files import catalogue_folder
from evomerge.zoo.digits import MODELS, NUM_SEEN, digits


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return digits(tmp_path_factory.mktemp("shared") / "zoo", seed=3)


def network(folder: Path) -> nn.Module:
    """The oracle: the same network, made of torch's own modules."""
    made = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10))
    parts = {"hidden": "0", "output": "2"}
    state = load_file(folder / "model.safetensors")
    made.load_state_dict({parts[k.split(".")[0]] + "." + k.split(".")[1]: state[k] for k in state})
    return made


def unseen() -> tuple[Tensor, Tensor]:
    images, labels = load_digits(return_X_y=True)
    return torch.tensor(images[NUM_SEEN:]).float(), torch.tensor(labels[NUM_SEEN:])


def right(folder: Path, wanted: range) -> float:
    images, labels = unseen()
    asked = torch.tensor([int(label) in wanted for label in labels])
    with torch.no_grad():
        answers = network(folder)(images[asked]).argmax(1)
    return float((answers == labels[asked]).float().mean())


def test_each_network_knows_its_half_and_nothing_else(zoo: Path) -> None:
    low, high = range(5), range(5, 10)
    assert right(zoo / "low", low) > 0.8
    assert right(zoo / "high", high) > 0.8
    assert right(zoo / "low", high) == right(zoo / "high", low) == 0
    assert right(zoo / "base", range(10)) < 0.3


def test_the_seed_decides_the_bytes(zoo: Path, tmp_path: Path) -> None:
    def contents(folder: Path) -> list[str]:
        files = [folder / name / "model.safetensors" for name in MODELS]
        return [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]

    assert contents(digits(tmp_path / "again", seed=3)) == contents(zoo)
    other = contents(digits(tmp_path / "other", seed=4))
    assert len({*other, *contents(zoo)}) == 2 * len(MODELS)
    assert sum(p.numel() for p in network(zoo / "low").parameters()) == 19_210


def test_another_folder_is_not_written_into(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("my own")
    with pytest.raises(ConfigurationError, match="something that is no zoo"):
        digits(tmp_path, seed=3)
    assert (tmp_path / "mine").read_text() == "my own"


def test_the_experiment_runs_and_its_choice_has_the_score_that_it_says(
    zoo: Path, tmp_path: Path
) -> None:
    given = read_experiment(catalogue_folder("experiments") / "m2n2_digits.yaml")
    models = {"base": str(zoo / "base"), "experts": {k: str(zoo / k) for k in ("low", "high")}}
    update = {"allow_code": True, "budget": BudgetConfig(candidates=12), **models}
    run_experiment(given.model_copy(update=update), tmp_path / "run")
    run = evomerge.Run(tmp_path / "run")
    best = run.best()
    run.export(best.id, tmp_path / "best")
    images, labels = unseen()
    recorded = read_run(tmp_path / "run")
    for task, items in recorded.split.search.items():
        rows = torch.tensor(items)
        answers = network(tmp_path / "best")(images[rows]).argmax(1) == labels[rows]
        said = recorded.measurements.values(best.fingerprint, task, items)
        assert said.tolist() == answers.float().tolist()
    assert right(tmp_path / "best", range(10)) > right(zoo / "low", range(10))
