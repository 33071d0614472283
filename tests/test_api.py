"""The engine from Python, on networks that are no transformers: digits, each half known to one."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import evomerge
from evomerge.errors import ConfigurationError, ModelError

State = dict[str, Tensor]


def build() -> nn.Module:
    return nn.Sequential(
        nn.Linear(64, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 10)
    )


class Digits:
    """Data, a base that has learnt a little of all digits, and an expert for each half of them."""

    def __init__(self) -> None:
        from sklearn.datasets import load_digits

        images, labels = load_digits(return_X_y=True)
        order = np.random.default_rng(0).permutation(len(labels))
        self.images = torch.tensor(images[order] / 16, dtype=torch.float32)
        self.labels = torch.tensor(labels[order])
        seen = slice(0, 900)
        torch.manual_seed(0)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            module = build()
        self.base = self.train(module, slice(0, 100), range(10), 15)
        self.low = self.train(module, seen, range(5), 60)
        module.load_state_dict(self.base)
        self.high = self.train(module, seen, range(5, 10), 60)

    def train(self, module: nn.Module, rows: slice, digits: range, steps: int) -> State:
        images, labels = self.images[rows], self.labels[rows]
        wanted = torch.isin(labels, torch.tensor(list(digits)))
        optimizer = torch.optim.Adam(module.parameters(), lr=0.01)
        for _ in range(steps):
            optimizer.zero_grad()
            nn.functional.cross_entropy(module(images[wanted]), labels[wanted]).backward()
            optimizer.step()
        return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}

    def right(self, module: nn.Module) -> dict[str, Tensor]:
        """Per item, whether it is answered rightly; on what nobody was trained on."""
        return {"right": (module(self.images[900:]).argmax(1) == self.labels[900:]).float()}

    def halves(self, module: nn.Module) -> dict[str, Tensor]:
        right, labels = self.right(module)["right"], self.labels[900:]
        return {"low": right[labels < 5], "high": right[labels >= 5]}

    @property
    def models(self) -> dict[str, State]:
        return {"low": self.low, "high": self.high}


@pytest.fixture(scope="module")
def digits() -> Digits:
    return Digits()


@pytest.fixture(scope="module")
def search(digits: Digits, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., evomerge.Run]:
    folder = tmp_path_factory.mktemp("runs")

    def call(out: str = "run", **changes: Any) -> evomerge.Run:
        arguments: dict[str, Any] = {
            "models": digits.models,
            "base": digits.base,
            "fitness": digits.right,
            "build": build,
            "budget": 40,
            "searcher": {"kind": "cma_es", "population": 8},
        }
        return evomerge.search(**{**arguments, **changes}, out=folder / out)

    return call


def accuracy(digits: Digits, state: State) -> float:
    module = build()
    module.load_state_dict(state)
    return float(digits.right(module.eval())["right"].mean())


def test_a_search_beats_both_experts(digits: Digits, search: Callable[..., evomerge.Run]) -> None:
    run = search()
    final = run.status()["final"]
    holdout = {name: row["holdout"]["right"]["value"] for name, row in final["references"].items()}
    best = final["best"]["holdout"]["right"]
    assert best["value"] > max(holdout["low"], holdout["high"], holdout["base"]) + 0.05
    assert final["gain_over_best_reference"]["low"] <= best["value"] - max(holdout.values())
    merged = run.merge()
    assert (
        accuracy(digits, merged) > max(accuracy(digits, s) for s in digits.models.values()) + 0.05
    )
    # The table is of the same model: the holdout's part of the right answers is among all of them.
    parts = [final["references"]["low"][name]["right"] for name in ("search", "holdout")]
    num_items = sum(p["num_items"] for p in (*parts, final["best"]["fresh"]["right"]))
    right, part = accuracy(digits, merged) * num_items, best["value"] * best["num_items"]
    assert right == pytest.approx(round(right), abs=1e-3)
    assert part <= right + 1e-3
    assert right - part <= num_items - best["num_items"] + 1e-3
    assert run.front() == [final["best"]]
    assert run.best().id == final["best"]["candidate"]


def test_a_candidate_is_base_plus_weighted_task_vectors(
    digits: Digits, search: Callable[..., evomerge.Run]
) -> None:
    run = search()
    candidate = run.candidate(3)
    assert candidate.recipe is not None
    weights = candidate.recipe.merge_for(0, "mlp").parameters["weight"]
    assert isinstance(weights, dict)
    for name, tensor in run.merge(3).items():
        deltas = [
            weights[m] * (s[name].double() - digits.base[name]) for m, s in digits.models.items()
        ]
        expected = digits.base[name].double() + sum(deltas)
        torch.testing.assert_close(tensor.double(), expected, atol=1e-6, rtol=1e-6)
    assert all(map(torch.equal, run.merge(candidate).values(), run.merge(3).values()))


def test_the_same_call_goes_on_and_another_experiment_is_refused(
    search: Callable[..., evomerge.Run],
) -> None:
    search("again", budget=16)
    longer = search("again", budget=40)
    assert longer.status()["candidates"] == 40
    assert longer.ledger.digest() == search().ledger.digest()  # as if it had never ended
    events = list(longer.ledger.events("final"))
    assert list(search("again", budget=40).ledger.events("final")) == events  # nothing left to do
    with pytest.raises(ConfigurationError, match="seed"):
        search("again", seed=5)
    with pytest.raises(ConfigurationError, match="choose another --out"):
        search("again", searcher="random")


def test_another_function_of_the_same_name_is_another_experiment(
    search: Callable[..., evomerge.Run], digits: Digits
) -> None:
    def graded(sign: float) -> Callable[[nn.Module], dict[str, Tensor]]:
        def fitness(module: nn.Module) -> dict[str, Tensor]:
            return {"right": sign * digits.right(module)["right"]}

        return fitness

    first = search("graded", fitness=graded(1.0), budget=8)
    same = search("graded", fitness=graded(1.0), budget=8)
    assert same.ledger.digest() == first.ledger.digest()
    with pytest.raises(ConfigurationError, match=r"items\.right"):
        search("graded", fitness=graded(-1.0), budget=8)


def test_evomerge_resume_explains_itself(search: Callable[..., evomerge.Run]) -> None:
    run = search()
    command = [sys.executable, "-m", "evomerge", "resume", str(run.folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "call evomerge.search again with the same arguments and the same out=" in done.stderr
    with pytest.raises(ConfigurationError, match="model low: was a state dict in memory"):
        evomerge.Run(run.folder).merge()


def test_two_objectives_have_a_front(search: Callable[..., evomerge.Run], digits: Digits) -> None:
    run = search("two", fitness=digits.halves, searcher={"kind": "nsga2", "population": 8})
    rows = run.front()
    assert len(rows) > 1
    fresh = np.array([[row["fresh"][n]["value"] for n in ("low", "high")] for row in rows])
    for one in fresh:  # nobody on the front is dominated where it was chosen
        assert not ((fresh >= one).all(axis=1) & (fresh > one).any(axis=1)).any()
    assert (run.folder / "front.png").exists()


def test_a_fitness_may_be_one_number_and_read_the_tensors(
    search: Callable[..., evomerge.Run], digits: Digits
) -> None:
    wanted = {n: (digits.low[n] + digits.high[n]) / 2 for n in digits.base}

    def closeness(state: State) -> dict[str, float]:
        return {"close": -float(sum((state[n] - wanted[n]).square().sum() for n in wanted))}

    run = search("number", fitness=closeness, build=None, budget=80)
    weights = run.best().recipe.default.parameters["weight"]  # type: ignore[union-attr]
    assert weights == pytest.approx({"low": 0.5, "high": 0.5}, abs=0.1)
    final = run.status()["final"]
    assert final["best"]["holdout"]["close"]["num_items"] == 1
    assert final["references"]["uniform"]["holdout"]["close"]["value"] == pytest.approx(0, abs=1e-6)


def test_items_and_a_number_can_stand_side_by_side(
    search: Callable[..., evomerge.Run], digits: Digits
) -> None:
    def both(module: nn.Module) -> dict[str, Any]:
        return {**digits.right(module), "size": -float(module[0].weight.abs().mean())}

    run = search("mixed", fitness=both, searcher={"kind": "nsga2", "population": 8}, budget=8)
    best = run.status()["final"]["best"]
    assert best["holdout"]["size"]["num_items"] == 1
    assert best["holdout"]["right"]["num_items"] > 300


def test_exports_are_what_merge_gives(search: Callable[..., evomerge.Run], tmp_path: Path) -> None:
    from safetensors.torch import load_file

    run = search()
    folder = run.export(folder=tmp_path / "best")
    stored = load_file(folder / "model.safetensors")
    assert stored.keys() == run.merge().keys()
    assert all(torch.equal(stored[name], tensor) for name, tensor in run.merge().items())
    assert "right" in (folder / "README.md").read_text()


def test_a_candidate_that_fails_on_the_holdout_is_not_chosen(
    search: Callable[..., evomerge.Run], digits: Digits
) -> None:
    """The items are found out by asking: those that come last are the holdout's."""
    clean = search()
    chosen = clean.merge()["0.weight"]

    def fragile(module: nn.Module, items: dict[str, Any]) -> dict[str, Any]:
        right = digits.right(module)["right"]
        if items is None:
            return {"right": right}
        asked = list(items["right"])
        scores = right[asked]
        if len(asked) == len(holdout) and torch.equal(module[0].weight, chosen):
            scores = scores * float("nan")
        return {"right": scores}

    final = clean.status()["final"]
    holdout = range(final["best"]["holdout"]["right"]["num_items"])
    run = search("fragile", fitness=fragile)
    again = run.status()["final"]
    assert again["best"]["candidate"] != final["best"]["candidate"]
    assert again["best"]["holdout"]["right"]["num_items"] == len(holdout)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"fitness": lambda module: 3}, r"the fitness of the base: .* got int"),
        ({"fitness": lambda module: {"a": 1 / 0}}, "fitness of the base: .*ZeroDivisionError"),
        ({"searcher": "cmaes"}, "did you mean 'cma_es'"),
        ({"searcher": {"kind": "random", "population": 0}}, "searcher.population: should be"),
        ({"space": "per_experts"}, "did you mean 'per_expert'"),
        ({"space": {"kind": "weights"}}, "space.operator: this key is missing"),
        ({"budget": 0}, "budget.candidates: should be greater"),
        ({"buget": 3}, "buget: unknown key .did you mean 'budget'"),
        ({"models": {"base": {}}}, "name it otherwise"),
        ({"split": {"search": 10**6}}, "task right: 897 items, the split asks 1000000 search"),
        ({"split": {"serch": 10}}, "fitness.split.serch: unknown key"),
        ({"fitness": "tiny_mean", "split": {}}, "a fitness file has its own"),
    ],
)
def test_wrong_arguments_are_named(
    search: Callable[..., evomerge.Run], changes: dict[str, Any], told: str
) -> None:
    with pytest.raises(ConfigurationError, match=told):
        search("wrong", **changes)


def test_models_that_do_not_fit_are_named(
    search: Callable[..., evomerge.Run], digits: Digits
) -> None:
    wide = {**digits.low, "0.weight": torch.zeros(25, 64)}
    broken = {**digits.low, "0.bias": torch.full((24,), float("nan"))}
    with pytest.raises(ModelError, match=r"low: tensor '0.weight'.*has shape \[25, 64\]"):
        search("wide", models={"low": wide, "high": digits.high})
    with pytest.raises(ModelError, match=r"model low: .*'0.bias'.* holds NaN"):
        search("broken", models={"low": broken, "high": digits.high})


# --- merging without a search ---------------------------------------------------------------------


def test_merge_against_a_computation_by_hand(digits: Digits) -> None:
    weight = {"low": 0.3, "high": -0.5}
    merged = evomerge.merge(
        digits.models, "task_arithmetic", base=digits.base, parameters={"weight": weight}
    )
    for name, tensor in merged.items():
        base = digits.base[name].double()
        parts = [w * (digits.models[m][name].double() - base) for m, w in weight.items()]
        torch.testing.assert_close(tensor.double(), base + sum(parts), atol=1e-6, rtol=1e-6)

    family = {"base": digits.base, **digits.models}  # the base by its name
    same = evomerge.merge(family, "task_arithmetic", base="base", parameters={"weight": weight})
    assert all(torch.equal(same[name], merged[name]) for name in merged)

    mean = evomerge.merge(digits.models, "linear", base=digits.base, dtype="bfloat16")
    for name, tensor in mean.items():
        expected = ((digits.low[name] + digits.high[name]) / 2).to(torch.bfloat16)
        assert tensor.dtype == torch.bfloat16
        torch.testing.assert_close(tensor, expected, atol=1e-2, rtol=1e-2)


def test_a_seed_decides_what_is_dropped(digits: Digits, tmp_path: Path) -> None:
    def drop(seed: int, **more: Any) -> State:
        return evomerge.merge(digits.models, "dare_linear", base=digits.base, seed=seed, **more)

    assert torch.equal(drop(1)["2.weight"], drop(1)["2.weight"])
    assert not torch.equal(drop(1)["2.weight"], drop(2)["2.weight"])
    drop(1, out=tmp_path / "out")
    from safetensors.torch import load_file

    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert all(torch.equal(stored[name], tensor) for name, tensor in drop(1).items())


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"operator": "tise"}, "unknown operator 'tise'"),
        ({"operator": "ties", "parameters": {"densty": 1}}, "did you mean 'density'"),
        ({"operator": "ties", "parameters": {"density": 2}}, "a number from 0 to 1, got 2"),
        ({"operator": "ties", "parameters": {"weight": {"lo": 1}}}, "not a source of this merge"),
        ({"operator": "slerp"}, "slerp takes 1, got 2"),
        ({"operator": "linear", "dtype": "float8"}, "dtype: should be 'float32'"),
        ({"operator": "linear", "seed": -1}, "mask_seed: should be greater"),
    ],
)
def test_a_wrong_merge_is_named(digits: Digits, arguments: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigurationError, match=told):
        evomerge.merge(digits.models, base=digits.base, **arguments)


def test_a_missing_model_names_its_nearest_sibling(digits: Digits, tmp_path: Path) -> None:
    (tmp_path / "experts").mkdir()
    with pytest.raises(ModelError, match="did you mean 'experts'"):
        evomerge.merge({"a": tmp_path / "expert"}, "linear", base=digits.base)


def test_strangers_are_told_of_in_python_too(caplog):
    generator = torch.Generator().manual_seed(0)
    models = {name: {"w": torch.randn(60, 60, generator=generator)} for name in ("base", "a")}
    evomerge.merge({"a": models["a"]}, "linear", base=models["base"])
    assert any("a:" in line and "cosine" in line for line in caplog.messages)
    caplog.clear()
    near = {"w": models["base"]["w"] + 0.05 * models["a"]["w"]}
    evomerge.merge({"a": near}, "linear", base=models["base"])
    assert caplog.messages == []
