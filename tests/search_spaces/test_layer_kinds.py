"""What the kinds that choose layers make of their genes: by brute force and as papers have it."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_files import UNIT
from stand_ins import space_of

from evomerge.checkpoints.anatomy import anatomy_of
from evomerge.checkpoints.open import open_checkpoint
from evomerge.merging.materialise import Merger
from evomerge.recipe import Recipe, Slot
from evomerge.search_spaces.layer_walk import BACK, SKIP

EXPERTS = ("expert_0", "expert_1", "expert_2")
TENSOR = "model.layers.{}.mlp.up_proj.weight"


def source_of(slot: Slot) -> str:
    """Whose layer a slot holds; the base's where it says nothing."""
    if not slot.merges:
        return "base"
    (source,) = slot.merges["default"].sources or ()
    return source


def points(size: int) -> st.SearchStrategy[list[float]]:
    return st.lists(UNIT, min_size=size, max_size=size)


def states(num_layers: int) -> dict[str, dict[str, torch.Tensor]]:
    draw = torch.Generator().manual_seed(5)
    names = [TENSOR.format(i) for i in range(num_layers)] + ["lm_head.weight"]
    return {
        model: {name: torch.randn(4, 4, generator=draw) for name in names}
        for model in ("base", *EXPERTS)
    }


def merged(recipe: Recipe, family: dict[str, dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    opened = {n: open_checkpoint(dict(s), name=n) for n, s in family.items() if n in recipe.models}
    merger = Merger(opened, anatomy_of(opened["base"]), "base", once=True)
    return dict(merger.tensors(recipe))


# --- layer_pruning --------------------------------------------------------------------------------

SEVERAL = {
    "choose": "several",
    "operator": "task_arithmetic",
    "search": {"weight": {"range": [0, 1]}},
}
GPTAILOR = {"kind": "layer_pruning", "remove": 2, "layers": SEVERAL}


@settings(max_examples=40, deadline=None)
@given(points(2 + 5 * 4))
def test_gptailor_no_bit_is_the_base_one_the_experts_more_their_scaled_sum(
    genome: list[float],
) -> None:
    """Su et al. 2025: base + scale x the sum of the task vectors of those whose bits are set."""
    space = space_of(GPTAILOR, num_layers=5)
    family = states(5)
    found = merged(space.decode(genome), family)
    removed: set[int] = set()
    for coordinate in genome[:2]:
        layer = min(int(coordinate * 5), 4)
        while layer in removed:
            layer = (layer + 1) % 5
        removed.add(layer)
    kept = [layer for layer in range(5) if layer not in removed]
    assert len(found) == len(kept) + 1
    for slot, layer in enumerate(kept):
        *bits, scale = genome[2 + 4 * layer : 6 + 4 * layer]
        chosen = [expert for expert, bit in zip(EXPERTS, bits, strict=True) if bit >= 0.5]
        name = TENSOR.format(layer)
        base = family["base"][name]
        expected = base
        if len(chosen) == 1:
            expected = family[chosen[0]][name]
        elif chosen:
            expected = base + scale * sum(family[expert][name] - base for expert in chosen)
        torch.testing.assert_close(found[TENSOR.format(slot)], expected, rtol=0, atol=1e-5)
    assert torch.equal(found["lm_head.weight"], family["base"]["lm_head.weight"])


@pytest.mark.parametrize(("num_layers", "removed"), [(40, 10), (36, 9), (32, 8)])
def test_gptailors_first_trials(num_layers: int, removed: int) -> None:
    """3 orders x (the base alone + 6 scales x 7 sets of 3 experts) = 129."""
    space = space_of({**GPTAILOR, "remove": 0.25}, num_layers=num_layers)
    recipes = [space.decode(genome) for genome in space.designs()]
    assert len(recipes) == 129
    said: dict[tuple[int, ...], set[Any]] = {}
    for recipe in recipes:
        assert recipe.slots is not None
        gone = sorted(set(range(num_layers)) - {slot.layer for slot in recipe.slots})
        (contents,) = {str(slot.merges) for slot in recipe.slots}
        said.setdefault(tuple(gone), set()).add(contents)
    last_first = tuple(range(num_layers - removed, num_layers))
    first = (num_layers - removed) // 2
    assert len(said) == 3
    assert last_first in said
    middle, alternating = sorted(said.keys() - {last_first}, key=lambda gone: gone[-1] - gone[0])
    assert middle[-1] - middle[0] == removed - 1
    assert middle[0] in (first, first + 1)
    assert {b - a for a, b in itertools.pairwise(alternating)} == {2}
    # Where one expert stands alone, six scales are one model.
    assert {len(contents) for contents in said.values()} == {1 + 3 + 4 * 6}


@pytest.mark.parametrize("by", ["number", "flag"])
@pytest.mark.parametrize(("num_layers", "count"), [(2, 1), (4, 2), (5, 3), (5, 4), (6, 1)])
def test_exactly_so_many_layers_are_removed_and_any_may_be(
    by: str, num_layers: int, count: int
) -> None:
    space = space_of({"kind": "layer_pruning", "remove": count, "by": by}, num_layers)
    if by == "number":
        grid = [(i + 0.5) / num_layers for i in range(num_layers)]
    else:
        grid = [0.1, 0.6, 0.9]
    reached = set()
    for genome in itertools.product(grid, repeat=len(space.genes)):
        assert space.violations(list(genome)) == []
        layers = [slot.layer for slot in space.decode(list(genome)).slots]
        assert layers == sorted(set(layers))
        assert len(layers) == num_layers - count
        reached.add(tuple(layers))
    assert len(reached) == math.comb(num_layers, count)


def test_repeats_that_are_rejected_are_the_only_violations() -> None:
    data = {"kind": "layer_pruning", "remove": 3, "repeats": "reject"}
    space = space_of(data, 4)
    for places in itertools.product(range(4), repeat=3):
        genome = [(place + 0.5) / 4 for place in places]
        assert bool(space.violations(genome)) == (len(set(places)) < 3)
        if len(set(places)) == 3:
            assert {slot.layer for slot in space.decode(genome).slots} == {0, 1, 2, 3} - {*places}


# --- layer_stack ----------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(st.data(), st.integers(1, 3), st.sampled_from([(1, 3.0), (4, 6), (0.5, 0.75)]))
def test_a_row_is_an_indicator_over_all_models_several_times_over(
    data: st.DataObject, repeats: int, layers: tuple[float, float]
) -> None:
    """Akiba et al. 2025: T = M r steps; I_t in {0, 1}; each layer's input is scaled."""
    file = {
        "kind": "layer_stack",
        "repeats": repeats,
        "layers": list(layers),
        "scales": {"range": [0.5, 1.5], "of": "input"},
    }
    space = space_of(file, num_layers=4, num_experts=2)
    steps = 8 * repeats
    assert len(space.genes) == 2 * steps
    genome = data.draw(points(2 * steps))
    indicator = np.array(genome[:steps]) >= 0.5
    scale = 0.5 + np.array(genome[steps:])
    least, most = (round(x * 4) if isinstance(x, float) else x for x in layers)
    expected = [
        (EXPERTS[t % 8 // 4], t % 4, pytest.approx(scale[t], abs=1e-6))
        for t in range(steps)
        if indicator[t]
    ]
    stack = space.decode(genome).slots
    found = [(source_of(slot), slot.layer, slot.input_scale) for slot in stack]
    if least <= len(expected) <= most:
        assert found == expected
    else:
        assert len(found) == (least if len(expected) < least else min(most, steps))


ALL = ("base", "expert_0", "expert_1")
BY_POSITION = {
    "kind": "layer_stack",
    "arrange": "by_position",
    "models": "all",
    "layers": [1, 12],
    "keep_base": False,
}


def test_every_order_of_every_choice_stands_in_a_place() -> None:
    space = space_of(BY_POSITION, num_layers=2, num_experts=2)
    assert [gene.name for gene in space.genes[:4]] == [
        *(f"layer_0.{m}" for m in ALL),
        "layer_0.order",
    ]
    orders = list(itertools.permutations(ALL))
    reached = set()
    for number, order in enumerate(orders):
        for bits in itertools.product((0.0, 1.0), repeat=3):
            genome = [*bits, (number + 0.5) / 6, 1.0, 0.0, 0.0, 0.5]
            slots = space.decode(genome).slots
            found = [source_of(slot) for slot in slots if slot.layer == 0]
            on = {model for model, bit in zip(ALL, bits, strict=True) if bit}
            assert found == [model for model in order if model in on]
            assert [source_of(slot) for slot in slots if slot.layer == 1] == ["base"]
            reached.add(tuple(found))
    assert len(reached) == sum(math.perm(3, k) for k in range(4))


@settings(max_examples=200, deadline=None)
@given(st.data(), st.booleans(), st.sampled_from([(1, 5), (4, 4), (3, 8)]))
def test_of_too_many_layers_the_lowest_go_and_too_few_are_told(
    data: st.DataObject, keep_base: bool, layers: tuple[int, int]
) -> None:
    file = {**BY_POSITION, "models": "experts", "keep_base": keep_base, "layers": list(layers)}
    space = space_of(file, num_layers=4, num_experts=2)
    genome = data.draw(points(len(space.genes)))
    bits = {
        (layer, model): genome[3 * layer + model]
        for layer in range(4)
        for model in range(2)
        if genome[3 * layer + model] >= 0.5
    }
    # one at a time, as long as there are too many; a place that must hold something keeps its last
    order = sorted(bits, key=lambda at: bits[at])

    def depth() -> int:
        held = [sum(layer == i for layer, _ in bits) for i in range(4)]
        return sum(max(count, 1) if keep_base else count for count in held)

    for at in order:
        alone = sum(layer == at[0] for layer, _ in bits) == 1
        if depth() > layers[1] and not (keep_base and alone):
            del bits[at]
    told = space.violations(genome)
    assert bool(told) == (not layers[0] <= depth() <= layers[1])
    if not told:
        slots = space.decode(genome).slots
        found = {(s.layer, EXPERTS.index(source_of(s))) for s in slots if s.merges}
        assert found == set(bits)
        assert len(slots) == depth()


# --- layer_swap -----------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(points(3), st.integers(3, 9), st.booleans())
def test_layer_swapping_is_painted_from_both_ends(
    genome: list[float], num_layers: int, turned: bool
) -> None:
    """Bandarkar et al. 2025: bottom and top are one expert's, the middle is the other's."""
    names = {"outer": "expert_1", "inner": "expert_0"} if turned else {}
    data = {"kind": "layer_swap", "bottom": [0, 3], "top": [0, 2], "transition": [0, 2], **names}
    space = space_of(data, num_layers, 2)
    bottom, top, transition = (
        min(int(g * n), n - 1) for g, n in zip(genome, (4, 3, 3), strict=True)
    )
    outer, inner = ("expert_1", "expert_0") if turned else ("expert_0", "expert_1")
    painted = [{inner} for _ in range(num_layers)]
    too_much = bottom + top + transition * ((bottom > 0) + (top > 0)) >= num_layers
    assert bool(space.violations(genome)) == too_much
    if too_much:
        return
    for i in range(bottom):
        painted[i] = {outer}
    for i in range(top):
        painted[-1 - i] = {outer}
    for i in range(transition):
        if bottom:
            painted[bottom + i] = {outer, inner}
        if top:
            painted[-1 - top - i] = {outer, inner}
    recipe = space.decode(genome)
    assert [set(slot.merges["default"].sources) for slot in recipe.slots] == painted
    family = states(num_layers)
    found = merged(recipe, family)
    for i, models in enumerate(painted):
        mean = torch.stack([family[model][TENSOR.format(i)] for model in models]).mean(dim=0)
        torch.testing.assert_close(found[TENSOR.format(i)], mean, rtol=0, atol=1e-6)
    last = torch.stack([family[m]["lm_head.weight"] for m in painted[-1]]).mean(dim=0)
    torch.testing.assert_close(found["lm_head.weight"], last, rtol=0, atol=1e-6)


# --- layer_walk -----------------------------------------------------------------------------------


class Walk:
    """Reinforced model merging's episode: a position, what was taken, and whether it is over."""

    def __init__(self, num_layers: int) -> None:
        self.at, self.num_layers, self.taken = 0, num_layers, []

    @property
    def over(self) -> bool:
        return not 0 <= self.at < self.num_layers

    def step(self, action: str) -> None:
        if action == BACK:
            self.at -= 1
            return
        if action != SKIP:
            self.taken.append((action, self.at))
        self.at += 1


@settings(max_examples=300, deadline=None)
@given(st.data(), st.integers(1, 4), st.sampled_from([1.0, 1.5, 2.0, 3.0]))
def test_a_walk_is_that_of_reinforced_model_merging(
    data: st.DataObject, num_layers: int, steps: float
) -> None:
    file = {"kind": "layer_walk", "steps": steps, "merges": {"average": {"operator": "linear"}}}
    space = space_of(file, num_layers, 2)
    detours = (round(steps * num_layers) - num_layers) // 2
    back = (BACK,) if detours or len(space.genes) > 1 else ()
    assert len(space.genes) == num_layers + 2 * detours
    moves = ("expert_0", "expert_1", "average", SKIP, *back)
    genome = data.draw(points(len(space.genes)))
    walk = Walk(num_layers)
    mattered = []
    for number, coordinate in enumerate(genome):
        allowed = moves if number else moves[:4]
        mattered.append(not walk.over)
        if not walk.over:
            walk.step(allowed[min(int(coordinate * len(allowed)), len(allowed) - 1)])
    assert space.active(genome) == mattered
    arrived = walk.at == num_layers and walk.taken
    assert bool(space.violations(genome)) == (not arrived)
    if arrived:
        found = [
            ("average" if len(slot.merges["default"].sources) > 1 else source_of(slot), slot.layer)
            for slot in space.decode(genome).slots
        ]
        assert found == walk.taken
