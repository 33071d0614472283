"""Random files of every kind over random models: what is said of one point holds for all."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from random_files import KINDS, UNIT, Data, attempt

from evomerge.checkpoints.anatomy import Anatomy
from evomerge.merging.check import resolved_parameters
from evomerge.merging.materialise import check_recipe
from evomerge.recipe import Recipe

Case = tuple[Data, list[str], Anatomy]
# What a violation says: which gene, how deep, how many layers.
NAMED = re.compile(r"removed_\d.* stands twice|layers?\W|layer \d|of \d+ layers|takes no layer")
QUICK = {"deadline": None, "suppress_health_check": list(HealthCheck)}
EXAMPLES = int(os.environ.get("EVOMERGE_EXAMPLES", "120"))  # the fuzzing takes more
LEAST = 0.05  # of the files are taken, at the very least; what is drawn need not make sense


def check_point(space: Any, genome: list[float], data: st.DataObject) -> bool:
    """What holds at every point of the cube; whether there is a model."""
    if told := space.violations(genome):
        assert all(NAMED.search(what) for what in told), told
        return False
    recipe = space.decode(genome)
    assert check_recipe(recipe, space.anatomy) == []
    validated = Recipe.from_json(recipe.to_json())
    assert validated == recipe
    assert validated.fingerprint == recipe.fingerprint
    assert space.decode(genome) == recipe, "decoding is pure"
    for read in (recipe, validated):
        back = space.encode(read)
        assert space.violations(back) == []
        assert all(type(x) is float and 0 <= x <= 1 for x in back)
        assert json.loads(json.dumps(back)) == back
        assert space.decode(back) == recipe
        assert space.decode(back).fingerprint == recipe.fingerprint
    active = space.active(genome)
    moved = [x if matters else data.draw(UNIT) for x, matters in zip(genome, active, strict=True)]
    assert space.violations(moved) == []
    assert space.decode(moved) == recipe
    assert space.active(moved) == active
    return True


@pytest.mark.parametrize("kind", KINDS)
def test_every_point_is_a_model_or_has_named_violations(kind: str) -> None:
    counts: Counter[str] = Counter()

    @settings(max_examples=EXAMPLES, **QUICK)
    @given(KINDS[kind](), st.data())
    def check(case: Case, data: st.DataObject) -> None:
        counts["files"] += 1
        space, problems = attempt(*case)
        if space is None:
            assert problems
            assert all(problem.what for problem in problems)
            return
        counts["taken"] += 1
        size = len(space.genes)
        assert len({gene.name for gene in space.genes}) == size
        for corner in (0.0, 0.5, 1.0):
            counts["models"] += check_point(space, [corner] * size, data)
        genome = data.draw(st.lists(UNIT, min_size=size, max_size=size))
        counts["models"] += check_point(space, genome, data)
        for design in space.designs():
            assert space.violations(design) == []
            assert check_point(space, design, data)

    check()
    assert counts["taken"] >= LEAST * counts["files"], counts
    assert counts["models"] >= counts["taken"] / 10, counts


# --- files and recipes that are wrong -------------------------------------------------------------

JUNK = st.sampled_from(
    [
        *(None, True, -1, 0, 3, 0.5, 2.5, float("nan"), float("inf"), "x", "layer", ["expert"]),
        *([], {}, [0, 1], [1, 0], [0.0, 0.0], [[0, 1]], {"a": 1}, {"range": [0, 1]}),
    ]
)


def places_of(data: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where something stands in nested mappings and lists."""
    items = data.items() if isinstance(data, dict) else enumerate(data) if is_list(data) else ()
    inner = [place for key, value in items for place in places_of(value, (*path, key))]
    return [path, *inner] if path else inner


def is_list(data: Any) -> bool:
    return isinstance(data, list)


def damage(data: Any, draw: Any) -> Any:
    """The same with one value, or one key, changed."""
    data = json.loads(json.dumps(data))
    *way, last = draw(st.sampled_from(places_of(data)))
    where = data
    for key in way:
        where = where[key]
    change = draw(st.sampled_from(["value", "value", "key", "gone"]))
    if change == "value":
        where[last] = draw(JUNK)
    elif change == "key" and isinstance(where, dict):
        where[f"{last}s"] = where.pop(last)
    else:
        del where[last]
    return data


@pytest.mark.parametrize("kind", KINDS)
def test_files_that_are_wrong_are_refused_in_words(kind: str) -> None:
    @settings(max_examples=EXAMPLES, **QUICK)
    @given(KINDS[kind](), st.data())
    def check(case: Case, data: st.DataObject) -> None:
        file, experts, anatomy = case
        damaged = damage(file, data.draw)
        space, problems = attempt(damaged, experts, anatomy)
        if space is None:
            assert all(problem.what for problem in problems)
            return
        for corner in (0.0, 1.0):
            check_point(space, [corner] * len(space.genes), data)

    check()


@pytest.mark.parametrize("kind", KINDS)
def test_recipes_of_others_are_encoded_or_refused_in_words(kind: str) -> None:
    """What is encoded decodes to the same, or to what says the same."""

    @settings(max_examples=EXAMPLES, **QUICK)
    @given(KINDS[kind](), st.sampled_from(sorted(KINDS)).flatmap(lambda k: KINDS[k]()), st.data())
    def check(case: Case, other: Case, data: st.DataObject) -> None:
        space, _ = attempt(*case)
        foreign, _ = attempt(other[0], case[1], case[2])
        if space is None or foreign is None:
            return
        source = data.draw(st.sampled_from([space, foreign]))
        genome = data.draw(st.lists(UNIT, min_size=len(source.genes), max_size=len(source.genes)))
        if source.violations(genome):
            return
        said = json.loads(source.decode(genome).to_json())
        models = said.pop("models")
        if data.draw(st.booleans()):
            said = damage(said, data.draw)
        try:
            recipe = Recipe.model_validate({"models": models, **said})
        except ValueError:
            return
        try:
            back = space.encode(recipe)
        except ValueError:
            return
        assert space.violations(back) == []
        assert says_the_same(space.decode(back), recipe, space.anatomy)

    check()


def says_the_same(one: Recipe, other: Recipe, anatomy: Anatomy) -> bool:
    """Whether each tensor is merged alike, as far as the decimals go."""
    if one == other:
        return True
    slots = range(len(one.slots) if one.slots is not None else anatomy.num_layers)
    places = [(s, p.component) for s in slots for p in anatomy.places.values() if p.layer == s]
    places += [(None, p.component) for p in anatomy.places.values() if p.layer is None]
    for place in places:
        mine, theirs = one.merge_for(*place), other.merge_for(*place)
        assert (mine.operator, set(mine.sources)) == (theirs.operator, set(theirs.sources))
        for name, value in by_source(mine).items():
            assert value == pytest.approx(by_source(theirs)[name], abs=2e-6), (place, name)
    return True


def by_source(merge: Any) -> dict[str, Any]:
    """Every parameter, by source where it has a value for each."""
    return {
        name: dict(zip(merge.sources, value, strict=True)) if isinstance(value, tuple) else value
        for name, value in resolved_parameters(merge).items()
    }
