"""What stands behind the charts: gene importance, tables of recipes, labels that stay apart."""

from __future__ import annotations

import sys
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from made_up import MadeUp

from evomerge.recipe import Recipe
from evomerge.records import Estimate
from evomerge.results.report.gene_effects import effects, usable
from evomerge.results.report.importance import _prefix
from evomerge.results.report.marks import apart, number, plain, short, signed
from evomerge.results.report.summary import duration, front_in_words, listed
from evomerge.results.report.tables_of_recipe import coefficients, is_rearranged, standings

# --- gene importance ------------------------------------------------------------------------------


def test_importance_is_the_variance_of_a_genes_own_part() -> None:
    """Of a sum of independent parts the shares are known: 3 : 1, and nothing for the rest."""
    generator = np.random.default_rng(0)
    genomes = generator.random((3000, 6))
    line = genomes[:, 0] - 0.5  # variance 1/12
    bow = (genomes[:, 1] - 0.5) ** 2  # variance 1/180
    scores = np.sqrt(3) * line / np.sqrt(1 / 12) + bow / np.sqrt(1 / 180)
    found = effects(genomes, scores)
    assert found is not None
    assert found.explained > 0.93  # ranks are no sum of parts any more, but nearly
    assert found.importance[0] / found.importance[1] == pytest.approx(3, rel=0.25)
    assert found.importance[:2].sum() == pytest.approx(found.explained, abs=0.03)
    assert np.abs(found.importance[2:]).max() < 0.005
    assert (found.low[:2] > 0).all()
    assert found.trend[0] > 0.8
    assert abs(found.trend[1]) < 0.1  # its best value is in the middle or at both ends


def test_importance_says_nothing_of_noise() -> None:
    generator = np.random.default_rng(1)
    found = effects(generator.random((200, 40)), generator.normal(size=200))
    assert found is not None
    assert found.explained < 0.02


def test_importance_agrees_with_scikit_learns() -> None:
    from sklearn.inspection import permutation_importance
    from sklearn.linear_model import Ridge
    from sklearn.preprocessing import StandardScaler

    generator = np.random.default_rng(2)
    genomes = generator.random((1200, 4))
    scores = genomes @ [2.0, 1.0, 0.5, 0.0] + 0.1 * generator.normal(size=1200)
    ranks = scores.argsort().argsort() / 1200

    class Additive(Ridge):  # type: ignore[misc]
        def fit(self, x: np.ndarray, y: np.ndarray) -> Additive:
            self.scale = StandardScaler().fit(self.terms(x))
            super().fit(self.scale.transform(self.terms(x)), y)
            return self

        def predict(self, x: np.ndarray) -> np.ndarray:
            result: np.ndarray = super().predict(self.scale.transform(self.terms(x)))
            return result

        @staticmethod
        def terms(x: np.ndarray) -> np.ndarray:
            return np.concatenate([x, (x - 0.5) ** 2], axis=1)

    model = Additive(alpha=1e-3).fit(genomes[:800], ranks[:800])
    theirs = permutation_importance(
        model, genomes[800:], ranks[800:], n_repeats=20, random_state=0, scoring="r2"
    ).importances_mean
    ours = effects(genomes, scores)
    assert ours is not None
    np.testing.assert_allclose(ours.importance, theirs / 2, atol=0.03)


def test_importance_needs_candidates_that_differ() -> None:
    genomes = np.random.default_rng(0).random((29, 2))
    assert effects(genomes, np.arange(29)) is None
    assert effects(np.tile(genomes, (2, 1)), np.ones(58)) is None
    same = effects(np.full((40, 3), 0.5), np.arange(40))  # genes that never vary
    assert same is not None
    np.testing.assert_array_equal(same.importance, 0)


def test_genomes_that_are_no_vectors_are_left_alone() -> None:
    assert usable([[0.1, 0.2], [0.3, 0.4]], 2)
    assert usable([[0.1, 0.2]], 0)
    assert not usable([], 0)
    assert not usable([{"stops": [1]}], 0)
    assert not usable([[0.1], [0.1, 0.2]], 0)
    assert not usable([[0.1, 0.2]], 3)


# --- recipes --------------------------------------------------------------------------------------


def recipe(**more: object) -> Recipe:
    models = {name: f"/{name}" for name in ("base", "a", "b")}
    return Recipe(**{"base": "base", "models": models, "default": {"operator": "linear"}, **more})


def test_coefficients_are_what_the_recipe_says_of_each_layer() -> None:
    run = MadeUp(experts=("a", "b"), num_layers=5)
    generator = np.random.default_rng(3)
    made = run.recipe(generator.random(10))
    (table,), constant = coefficients(made, ("a", "b"), 5)
    assert (table.parameter, table.rows, table.columns) == ("weight", ("a", "b"), tuple("01234"))
    assert constant == {}
    for row, expert in enumerate(table.rows):
        for layer in range(5):
            expected = made.merge_for(layer, "mlp").parameters["weight"]
            assert isinstance(expected, dict)
            assert table.values[row][layer] == expected[expert]


def test_components_have_a_table_each_and_shared_values_a_row() -> None:
    slots = [
        {
            "layer": i,
            "merges": {
                "attention": {"parameters": {"weight": {"a": i / 10, "b": 0.5}}},
                "mlp": {"parameters": {"weight": 0.1 * i}},
            },
        }
        for i in range(3)
    ]
    default = {"operator": "linear", "parameters": {"weight": 0.7, "normalize": True}}
    tables, constant = coefficients(recipe(slots=slots, default=default), ("a", "b"), 3)
    by_part = {table.part: table for table in tables}
    assert list(by_part) == ["attention", "mlp", "norm", "outside the layers"]
    assert by_part["attention"].rows == ("a", "b")
    assert by_part["attention"].values == ((0.0, 0.1, 0.2), (0.5, 0.5, 0.5))
    assert by_part["mlp"].rows == ("all experts",)
    assert by_part["norm"].values == ((0.7, 0.7, 0.7),)
    assert constant == {"normalize": "True"}


def test_what_is_the_same_everywhere_is_said_once() -> None:
    same = {"operator": "ties", "parameters": {"weight": {"a": 0.4, "b": 0.6}, "density": 0.2}}
    (table,), constant = coefficients(recipe(default=same), ("a", "b"), 12)
    assert table.columns == ("all tensors",)
    assert table.values == ((0.4,), (0.6,))
    assert constant == {"density": "0.2"}


def test_a_stack_is_told_slot_by_slot() -> None:
    def slot(layer: int, model: str, **more: float) -> dict[str, object]:
        return {"layer": layer, "merges": {"default": {"sources": [model]}}, **more}

    default = {"operator": "passthrough", "sources": ["base"]}
    slots = [slot(0, "a"), slot(2, "b", input_scale=0.5), slot(1, "a")]
    stack = recipe(slots=slots, default=default)
    found = standings(stack)
    assert [standing.layers for standing in found] == [{"a": 0}, {"b": 2}, {"a": 1}]
    assert [standing.input_scale for standing in found] == [1, 0.5, 1]
    assert is_rearranged(stack, 3)
    assert coefficients(stack, ("a", "b"), 3) == ([], {})
    in_order = [slot(i, "a") for i in range(3)]
    assert is_rearranged(recipe(slots=in_order, default=default), 3)  # of one expert alone
    of_all = [{"layer": i} for i in range(3)]
    assert not is_rearranged(recipe(slots=of_all), 3)


# --- texts and places -----------------------------------------------------------------------------


def test_labels_stay_apart_and_inside_and_in_order() -> None:
    generator = np.random.default_rng(0)
    for _ in range(300):
        count = int(generator.integers(1, 13))
        places = {f"n{i}": float(v) for i, v in enumerate(generator.normal(160, 60, count))}
        moved = apart(places, 15.0, 0.0, 300.0)
        heights = sorted(moved.values())
        assert all(b - a >= 15 - 1e-9 for a, b in pairwise(heights))
        assert heights[0] >= -1e-9
        assert heights[-1] <= 300
        assert sorted(moved, key=lambda n: moved[n]) == sorted(places, key=lambda n: (places[n], n))
    assert apart({"a": 10.0, "b": 200.0}, 15.0, 0.0, 300.0) == {"a": 10.0, "b": 200.0}


def test_texts_are_as_people_and_plotly_read_them() -> None:
    assert plain("<b>a</b> & c\n\x00d") == "&lt;b&gt;a&lt;/b&gt; &amp; c d"
    assert short("mistral-7b-instruct-v0.2", 16) == "mistral-7b…-v0.2"
    assert len(short("x" * 99, 16)) <= 16
    assert [number(v) for v in (0.12345, -0.0, 1234567.0, 0.0000123)] == [
        *("0.123", "0.000", "1.235M", "1.23e-05")
    ]
    assert [signed(v) for v in (0.1, -0.1, 0.0)] == ["+0.100", "-0.100", "±0.000"]
    assert [duration(v) for v in (3.21, 62.4, 111.0, 7300.0)] == [
        *("3.2 s", "62 s", "1 min 51 s", "2 h 1 min")
    ]
    assert listed(["a", "b", "c"]) == "a, b and c"
    assert listed(["a"]) == "a"
    assert listed(list("abcdefghij"), 3) == "a, b, c and 7 more"
    assert _prefix(("weight.a.x", "weight.a.y", "weight.b")) == len("weight.")
    assert _prefix(("weight.a",)) == 0


def test_the_front_in_words_says_who_is_beaten() -> None:
    def row(one: float, two: float) -> SimpleNamespace:
        return SimpleNamespace(scores={"a": Estimate(one, 0.0, 9), "b": Estimate(two, 0.0, 9)})

    def told(front: list[SimpleNamespace], references: list[SimpleNamespace]) -> str:
        objectives = [SimpleNamespace(name="a"), SimpleNamespace(name="b")]
        return front_in_words(
            cast(Any, SimpleNamespace(front=front, references=references, objectives=objectives))
        )

    alone = told([row(0.5, 1.0)], [row(0.6, 1.0), row(0.4, 1.0)])
    assert alone == (
        "The front has 1 candidate. References beat 1 of 1 (as good in everything, better in "
        "something); of 2 references, 1 are so beaten by one of the front."
    )
    assert "none of which is better" in told([row(0.5, 1.0), row(1.0, 0.5)], [row(0.0, 0.0)])
