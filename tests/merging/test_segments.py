"""Recipes with segments. Oracle: the flattened parameters, combined by brute force in numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from safetensors.torch import save_file
from tiny_states import States, merger_of
from torch import Tensor, nn

from evomerge.checkpoints.anatomy import anatomy_of
from evomerge.checkpoints.derived import Derived, Made
from evomerge.checkpoints.open import Checkpoint, open_checkpoint
from evomerge.errors import CandidateError, ConfigurationError
from evomerge.merging import reads
from evomerge.merging.flat_order import FlatModels, flat_order
from evomerge.merging.materialise import Merger
from evomerge.merging.operator import CHUNK
from evomerge.merging.resident import Resident
from evomerge.recipe import Recipe

MODELS = ("base", "a", "b")
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SHAPES = {"embed": (5, 3), "layers.0.up": (4, 3), "layers.0.down": (2, 3), "norm": (3,)}


def states_of(dtypes: Any = (torch.float32,), shapes: Any = None) -> dict[str, dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(2)
    states = {}
    for i, model in enumerate(MODELS):
        states[model] = {
            name: torch.randn(shape, generator=generator).to(dtypes[k % len(dtypes)])
            for k, (name, shape) in enumerate((shapes or SHAPES).items())
        }
        states[model]["steps"] = torch.tensor([i, i + 1])
    return states


def recipe_of(stops: list[int], /, **weights: list[float]) -> Recipe:
    return Recipe.model_validate(
        {
            "base": "base",
            "models": {name: name for name in MODELS},
            "segments": {"stops": stops, "weights": weights},
        }
    )


def flattened(state: Any, names: list[str]) -> np.ndarray:
    return np.concatenate([state[name].float().numpy().reshape(-1) for name in names])


def brute_force(states: States, recipe: Recipe) -> dict[str, Tensor]:
    """Every merged tensor, in the base's dtype."""
    base = states["base"]
    names = sorted(n for n, t in base.items() if t.is_floating_point())
    lengths = np.diff(recipe.segments.stops, prepend=0)
    total = sum(
        np.repeat(weights, lengths) * flattened(states[model], names)
        for model, weights in recipe.segments.weights.items()
    )
    merged, start = dict(base), 0
    for name in names:
        part = total[start : start + base[name].numel()]
        merged[name] = torch.from_numpy(part).reshape(base[name].shape).to(base[name].dtype)
        start += base[name].numel()
    return merged


TOTAL = sum(int(np.prod(shape)) for shape in SHAPES.values())


@st.composite
def recipes(draw: st.DrawFn) -> Recipe:
    stops = sorted({*draw(st.sets(st.integers(1, TOTAL - 1), max_size=8)), TOTAL})
    numbers = st.sampled_from([0.0, 0.0, 1.0, 0.5, -1.25]) | st.floats(-2, 2)
    weights = {name: [draw(numbers) for _ in stops] for name in MODELS}
    weights["a"][-1] = 0.75
    return recipe_of(stops, **weights)


@pytest.mark.parametrize("with_kernels", [True, False])
@pytest.mark.parametrize("dtypes", [*([d] for d in DTYPES), DTYPES], ids=str)
def test_every_tensor_is_the_combination_of_its_stretches(
    dtypes: list[torch.dtype], with_kernels: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not with_kernels:
        monkeypatch.setattr(reads, "kernels", lambda: None)
    states = states_of(dtypes)
    merger = merger_of(states)

    @settings(max_examples=40, deadline=None)
    @given(recipes())
    def check(recipe: Recipe) -> None:
        merged, expected = dict(merger.tensors(recipe)), brute_force(states, recipe)
        assert merged.keys() == expected.keys()
        for name, tensor in merged.items():
            assert tensor.dtype == expected[name].dtype
            if not tensor.is_floating_point():
                assert torch.equal(tensor, states["base"][name])
                continue
            step = torch.finfo(tensor.dtype).eps
            assert torch.allclose(tensor.float(), expected[name].float(), rtol=step, atol=1e-6)
            alone = torch.empty_like(tensor)
            merger.merge_tensor(recipe, name, alone)
            assert torch.equal(alone, tensor)

    check()


def test_large_tensors_are_cut_where_the_stretches_end() -> None:
    states = states_of(shapes={"big": (2, CHUNK), "small": (7,)})
    generator = np.random.default_rng(0)
    stops = sorted({*generator.integers(1, 2 * CHUNK, 50).tolist(), 2 * CHUNK + 7})
    weights = {name: generator.random(len(stops)).tolist() for name in MODELS}
    weights["b"][10:30] = [0.0] * 20
    recipe = recipe_of(stops, **weights)
    expected = brute_force(states, recipe)
    for name, tensor in merger_of(states).tensors(recipe):
        assert torch.allclose(tensor, expected[name], rtol=1e-6, atol=1e-6), name


def test_a_model_alone_is_that_model_to_the_bit() -> None:
    states = states_of(DTYPES)
    merged = dict(merger_of(states).tensors(recipe_of([TOTAL], b=[1.0])))
    for name, tensor in merged.items():
        assert torch.equal(tensor, states["b" if tensor.is_floating_point() else "base"][name])


def test_the_output_has_the_recipes_dtype() -> None:
    recipe = recipe_of([3, TOTAL], a=[0.5, 0.25], b=[0.5, 1]).model_copy(
        update={"dtype": "bfloat16"}
    )
    states = states_of()
    expected = brute_force(states, recipe)
    for name, tensor in merger_of(states).tensors(recipe):
        wanted = expected[name]
        assert torch.equal(tensor, wanted.bfloat16() if wanted.is_floating_point() else wanted)


# --- the order ------------------------------------------------------------------------------------


def opened(states: States) -> dict[str, Checkpoint]:
    return {name: open_checkpoint(state, name=name) for name, state in states.items()}


def test_the_order_is_by_name_of_what_all_models_have_alike() -> None:
    states = states_of()
    states["base"]["another"] = torch.ones(2)
    states["a"]["another"] = torch.ones(2)  # b has it not
    states["base"]["empty"] = torch.ones(0)
    for i, model in enumerate(MODELS):
        states[model]["shape"] = torch.ones(4 + i)
        states[model]["half"] = torch.ones(2, dtype=torch.float16)
    order = flat_order(opened(states), "base")
    assert list(order.spans.items()) == [
        ("embed", (0, 15)),
        ("half", (15, 17)),
        ("layers.0.down", (17, 23)),
        ("layers.0.up", (23, 35)),
        ("norm", (35, 38)),
    ]
    assert order.total == 38
    merged = dict(merger_of(states).tensors(recipe_of([38], b=[2.0])))
    assert merged.keys() == states["base"].keys()
    for name in ("another", "shape", "empty", "steps"):
        assert torch.equal(merged[name], states["base"][name])
    assert torch.equal(merged["half"], 2 * states["b"]["half"])


def test_tied_tensors_are_flattened_once() -> None:
    states = states_of()
    for state in states.values():
        state["head"] = state["embed"]
    assert flat_order(opened(states), "base").total == TOTAL
    merged = dict(merger_of(states).tensors(recipe_of([7, TOTAL], a=[1, 0.5], b=[0.25, 1])))
    assert torch.equal(merged["head"], merged["embed"])
    expected = 0.5 * states["a"]["embed"] + states["b"]["embed"]
    assert torch.allclose(merged["head"].view(-1)[7:], expected.view(-1)[7:], rtol=1e-6)


def test_tensors_that_are_computed_are_not_tied() -> None:
    origin = open_checkpoint({"x": torch.ones(3)}, name="base")
    made = {n: Made((2,), torch.float32, lambda: torch.zeros(2)) for n in ("y", "z")}
    derived = Derived(origin, {"w": "x", "x": "x", **made}, change=0)
    order = flat_order({"base": derived}, "base")
    assert order.spans == {"w": (0, 3), "x": (0, 3), "y": (3, 5), "z": (5, 7)}


@pytest.mark.parametrize("stored", ["memory", "files"])
@pytest.mark.parametrize("dtypes", [[torch.float32], DTYPES], ids=str)
def test_stretches_are_read_as_they_lie(stored: str, dtypes: Any, tmp_path: Any) -> None:
    states: Any = states_of(dtypes)
    names = sorted(SHAPES)
    expected = {model: flattened(state, names) for model, state in states.items()}
    if stored == "files":
        for model, state in states.items():
            save_file(state, tmp_path / f"{model}.safetensors")
        states = {model: tmp_path / f"{model}.safetensors" for model in MODELS}
    models = FlatModels(opened(states), "base")
    assert models.total == TOTAL
    for start in range(TOTAL):
        for stop in range(start + 1, TOTAL + 1):
            read = models.read("b", start, stop)
            assert read.dtype == np.float32
            assert (read == expected["b"][start:stop]).all()


# --- what is written, and what is read ------------------------------------------------------------


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 8)  # bias 0:8, weight 8:40
        self.norm = nn.BatchNorm1d(8)  # bias 40:48, mean, var, weight to 72
        self.second = nn.Linear(8, 4)  # bias 72:76, weight 76:108


def nets() -> dict[str, Checkpoint]:
    states = {}
    for i, name in enumerate(MODELS):
        torch.manual_seed(i)
        states[name] = Net().state_dict()
    return opened(states)


def test_only_groups_with_changed_pieces_are_written() -> None:
    resident = Resident.open(nets(), "base", build=Net)
    beside = {name: group.names for group in resident.merger.groups for name in group.names}
    assert "second.weight" not in beside["norm.weight"]
    everything = len(Net().state_dict())
    assert resident.write(recipe_of([50, 108], a=[0.5, 1.0], b=[0.5, 0.25])) == everything
    assert resident.write(recipe_of([50, 108], a=[0.5, 1.0], b=[0.5, 0.25])) == 0
    cut = recipe_of([20, 50, 108], a=[0.5, 0.5, 1.0], b=[0.5, 0.5, 0.25])
    assert resident.write(cut) == 0  # another table of the same model
    one_entry = recipe_of([50, 71, 72, 108], a=[0.5, 1, 1, 1], b=[0.5, 0.25, 0.3, 0.25])
    assert resident.write(one_entry) == len(beside["norm.weight"])
    counter = 1
    assert resident.write(recipe_of([108], a=[0.5])) == everything - counter


def test_the_module_holds_the_recipe_whatever_was_written_before() -> None:
    checkpoints = nets()
    resident = Resident.open(checkpoints, "base", build=Net)
    fresh = Merger(checkpoints, anatomy_of(checkpoints["base"]), "base", 0)
    other = {"base": "base", "models": {n: n for n in MODELS}, "default": {"operator": "ties"}}
    generator = np.random.default_rng(0)
    recipe = Recipe.model_validate(other)
    for number in range(12):
        resident.write(recipe)
        state = resident.module.state_dict()
        for name, expected in fresh.tensors(recipe):
            assert torch.equal(state[name], expected), name
        stops = sorted({*generator.integers(1, 108, 5).tolist(), 108})
        weights = generator.choice([0.0, 0.5, 1.0], (2, len(stops)))
        weights[0, 0] = 1
        recipe = recipe_of(stops, a=weights[0].tolist(), b=weights[1].tolist())
        if number == 5:
            recipe = Recipe.model_validate(other)


def test_models_without_weight_are_not_read() -> None:
    read = []

    class Told(Checkpoint):
        def tensor(self, name: str) -> Tensor:
            read.append((self.name, name))
            return super().tensor(name)

    states = states_of()
    checkpoints: Any = {name: Told(name, state) for name, state in states.items()}
    merger = Merger(checkpoints, anatomy_of(checkpoints["base"]), "base", once=True)
    recipe = recipe_of([15, TOTAL], a=[1.0, 0.5], b=[0.0, 0.5])
    for group, effective in merger.plan(recipe).items():
        merger.write(group, effective, [torch.empty(SHAPES.get(n, (2,))) for n in group.names])
    assert ("b", "embed") not in read
    assert {("b", "norm"), ("a", "embed"), ("a", "norm")} <= {*read}


def test_what_is_not_finite_is_refused_by_name() -> None:
    states = states_of()
    states["b"]["norm"][1] = torch.inf
    merger = merger_of(states)
    with pytest.raises(CandidateError, match="norm: the merged tensor is not finite"):
        dict(merger.tensors(recipe_of([TOTAL], a=[1], b=[0.5])))
    dict(merger.tensors(recipe_of([TOTAL - 3, TOTAL], a=[1, 1], b=[0.5, 0])))


def test_a_table_of_other_models_is_refused() -> None:
    merger = merger_of(states_of())
    with pytest.raises(ConfigurationError) as caught:
        merger.plan(recipe_of([5, 41], a=[1, 1]))
    assert str(caught.value) == (
        f"segments.stops: the last one is 41, and the models have {TOTAL} entries"
    )


# --- the recipe -----------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(recipes())
def test_json_there_and_back(recipe: Recipe) -> None:
    again = Recipe.from_json(recipe.to_json())
    assert again == recipe
    assert again.to_json() == recipe.to_json()
    assert again.fingerprint == recipe.fingerprint


def test_equal_tables_have_one_fingerprint_and_others_another() -> None:
    one = recipe_of([3, TOTAL], a=[1.0, 0.5], b=[0.0, 0.0])
    assert one == recipe_of([3, TOTAL], a=[1, 0.5])
    assert one.fingerprint == recipe_of([3, TOTAL], b=[0, -0.0], a=[1, 0.5]).fingerprint
    assert recipe_of([3, TOTAL], a=[1, 0.0]) == recipe_of([3, TOTAL], a=[1, -0.0])
    others = [
        recipe_of([4, TOTAL], a=[1, 0.5]),
        recipe_of([3, TOTAL], a=[1, 0.25]),
        recipe_of([3, TOTAL], b=[1, 0.5]),
    ]
    assert len({recipe.fingerprint for recipe in (one, *others)}) == 4


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"stops": []}, "stops"),
        ({"stops": [0, 5]}, "greater than 0"),
        ({"stops": [5, 5]}, "expected ascending numbers, got 5 after 5"),
        ({"stops": [5, 2**63]}, "less than"),
        ({"stops": [5]}, "a: expected 1 coefficients, one for each stretch, got 2"),
        ({"weights": {"a": [1, 2], "b": [1]}}, "b: expected 2 coefficients.*got 1"),
        ({"weights": {"a": [0, 0]}}, "all coefficients are 0"),
        ({"weights": {}}, "all coefficients are 0"),
        ({"weights": {"a": [1, float("nan")]}}, "finite"),
        ({"weights": {"x": [1, 2]}}, "unknown model.s. x; models: a, b, base"),
        ({"stop": [1]}, "stop"),
    ],
)
def test_bad_tables_are_refused_by_name(changes: dict[str, Any], told: str) -> None:
    table = {"stops": [2, 5], "weights": {"a": [1, 2]}, **changes}
    with pytest.raises(ValidationError, match=told):
        Recipe.model_validate(
            {"base": "base", "models": {name: name for name in MODELS}, "segments": table}
        )


@pytest.mark.parametrize(
    "beside",
    [
        {"slots": [{"layer": 0}]},
        {"outside": {"head": {"parameters": {"weight": 2}}}},
        {"tensors": {"norm": {"operator": "linear"}}},
        {"default": {"operator": "ties"}},
        {"default": {"operator": "linear", "parameters": {"weight": 1}}},
    ],
)
def test_no_other_merge_stands_beside_segments(beside: dict[str, Any]) -> None:
    (name,) = beside
    with pytest.raises(ValidationError, match=f"leave out {name}"):
        Recipe.model_validate({**recipe_of([TOTAL], a=[1]).model_dump(), **beside})
