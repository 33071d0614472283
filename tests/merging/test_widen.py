"""WIDEN against the authors' steps, column by column in float64."""

from __future__ import annotations

import math
from unittest import mock

import numpy as np
import pytest
import torch
from tiny_states import merger_of, recipe_of

EXPERTS = ("a", "b", "c")


def merged(states, sources=None, **parameters):
    recipe = recipe_of(states, "widen", sources, **parameters)
    return dict(merger_of(states).tensors(recipe))


def models_of(tensors):
    """Models by name, from {tensor: [base, a, b, c]}."""
    return {
        model: {name: values[i] for name, values in tensors.items()}
        for i, model in enumerate(("base", *EXPERTS)[: len(next(iter(tensors.values())))])
    }


def normal(*shape, count=4, seed=0, size=0.3):
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(shape, generator=generator)
    return [
        base,
        *(base + size * torch.randn(shape, generator=generator) for _ in range(count - 1)),
    ]


def norm(column):
    return math.sqrt(sum(x * x for x in column))


def ranked(values):
    order = sorted(range(len(values)), key=lambda i: (values[i], i))
    ranks = [0.0] * len(values)
    for place, i in enumerate(order):
        ranks[i] = place / len(values)
    return ranks


def scores(significance, above, calibrated):
    """Softmax over experts, calibrated where above the expert's mean; (experts, columns)."""
    found = []
    for row in significance:
        mean = sum(row) / len(row)
        own = []
        for j, value in enumerate(row):
            total = sum(math.exp(other[j] - value) for other in significance)
            own.append(calibrated if value > above * mean else 1 / total)
        found.append(own)
    return found


def widen(base, experts, above, calibrated):
    """A matrix, out x in; nested lists."""
    columns = list(zip(*base, strict=True))
    sizes, turns = [], []
    for expert in experts:
        size, turn = [], []
        for old, new in zip(columns, zip(*expert, strict=True), strict=True):
            size.append(abs(norm(new) - norm(old)))
            dot = sum(x * y for x, y in zip(old, new, strict=True))
            turn.append(1 - dot / (norm(old) * norm(new)) if old != new else 0.0)
        sizes.append(ranked(size))
        turns.append(ranked(turn))
    one, other = (scores(each, above, calibrated) for each in (sizes, turns))
    return [
        [
            x + sum((one[k][j] + other[k][j]) / 2 * (e[i][j] - x) for k, e in enumerate(experts))
            for j, x in enumerate(row)
        ]
        for i, row in enumerate(base)
    ]


@pytest.mark.parametrize(("above", "score"), [(1.0, 1.0), (0.5, 0.7), (1.6, -0.3), (0.0, 1.0)])
@pytest.mark.parametrize("shape", [(7, 5), (3, 8), (6, 1), (1, 6), (4, 2, 3)])
def test_matrices_are_merged_by_column(shape, above, score):
    """Also of one column or row, and of more dimensions than two."""
    tensors = normal(*shape, seed=sum(shape))
    value = merged(models_of({"layers.0.mlp.weight": tensors}), above=above, score=score)
    base, *experts = (t.double().view(shape[0], -1).tolist() for t in tensors)
    expected = torch.tensor(widen(base, experts, above, score), dtype=torch.float64)
    found = value["layers.0.mlp.weight"].double().view(expected.shape)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)


def test_an_embedding_is_merged_by_row_and_a_head_by_column():
    tensors = normal(9, 4, seed=2)
    value = merged(models_of({"embed_tokens.weight": tensors, "lm_head.weight": tensors}))
    plain = [t.double() for t in tensors]
    by_row = widen(plain[0].t().tolist(), [t.t().tolist() for t in plain[1:]], 1.0, 1.0)
    by_column = widen(plain[0].tolist(), [t.tolist() for t in plain[1:]], 1.0, 1.0)
    for name, expected in (
        ("embed_tokens.weight", torch.tensor(by_row).t()),
        ("lm_head.weight", torch.tensor(by_column)),
    ):
        torch.testing.assert_close(value[name], expected.float(), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("above", [1.0, 0.3])
def test_vectors_are_merged_by_how_far_they_moved(above):
    tensors = normal(11, seed=3)
    value = merged(models_of({"layers.0.norm.weight": tensors}), above=above, score=0.9)
    base, *experts = (t.double().tolist() for t in tensors)
    moves = [[abs(x - y) for x, y in zip(e, base, strict=True)] for e in experts]
    factor = scores(moves, above, 0.9)
    expected = [
        x + sum(factor[k][j] * (e[j] - x) for k, e in enumerate(experts))
        for j, x in enumerate(base)
    ]
    np.testing.assert_allclose(value["layers.0.norm.weight"].numpy(), expected, atol=1e-6)


def test_columns_that_moved_alike_rank_by_their_place():
    """Forty columns that are copies of three."""
    tensors = [t[:, [0, 1, 2, 1] * 10] for t in normal(4, 3, seed=9)]
    value = merged(models_of({"layers.0.mlp.weight": tensors}), above=1.2)
    base, *experts = (t.double().tolist() for t in tensors)
    expected = torch.tensor(widen(base, experts, 1.2, 1.0))
    torch.testing.assert_close(value["layers.0.mlp.weight"], expected, atol=1e-6, rtol=1e-6)


def test_columns_without_length_and_columns_that_did_not_move():
    """The authors get NaN of the first; rounding must not rank the second."""
    base, a, b = normal(6, 8, count=3, seed=4)
    base[:, 0] = 0  # it had no length
    a[:, 1] = 0  # it has none any more
    a[:, 4:] = base[:, 4:]
    states = models_of({"layers.0.mlp.weight": [base, a, b]})
    value = merged(states)["layers.0.mlp.weight"]
    assert torch.isfinite(value).all()
    from evomerge.merging.operators.widen import _moves

    sizes, turns = _moves(base, a, 0)
    assert turns[:2].tolist() == [1, 1]
    assert sizes[4:].tolist() == turns[4:].tolist() == [0] * 4


def test_the_kernel_is_as_torch_also_in_wide_matrices():
    states = models_of(
        {
            "layers.0.mlp.weight": normal(5, 2500, seed=5),
            "embed.weight": normal(30, 70, seed=6),
            "layers.0.norm.weight": normal(1100, seed=7),
        }
    )
    one = merged(states)
    with mock.patch("evomerge.merging.reads.kernels", return_value=None):
        other = merged(states)
    for name, value in one.items():
        torch.testing.assert_close(other[name], value, atol=1e-6, rtol=1e-6)


def test_an_experts_ranks_serve_every_choice_of_experts():
    states = models_of({"layers.0.mlp.weight": normal(6, 5)})
    merger = merger_of(states)
    from evomerge.merging.operators import widen as module

    with mock.patch.object(module, "_ranks", wraps=module._ranks) as made:
        for sources in (["a", "b"], ["b", "a"], ["a", "b", "c"], ["c"]):
            dict(merger.tensors(recipe_of(states, "widen", sources)))
        assert made.call_count == 3
