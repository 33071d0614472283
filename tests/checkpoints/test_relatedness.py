"""Figures against numpy in one line each, on whole models; and that a sample tells the same."""

from __future__ import annotations

import math
import time
from functools import partial
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from sparse_models import sparse_model

from evomerge.checkpoints.derived import Derived, Made
from evomerge.checkpoints.family import open_family
from evomerge.checkpoints.open import Checkpoint, open_checkpoint
from evomerge.checkpoints.relatedness import SAMPLE, relate
from evomerge.tables import relatedness_table

State = dict[str, torch.Tensor]


def state(seed: int, rows: int = 40, dtype: torch.dtype = torch.float32) -> State:
    generator = torch.Generator().manual_seed(seed)
    made = {
        f"layers.{i}.w": torch.randn(rows, 30 + i, generator=generator).to(dtype) for i in range(5)
    }
    return made | {"norm.weight": torch.ones(30, dtype=dtype)}


def moved(origin: State, seed: int, size: float) -> State:
    """A fine-tune: small steps away from the base."""
    step = state(seed, len(origin["layers.0.w"]))
    return {name: (t.float() + size * step[name]).to(t.dtype) for name, t in origin.items()}


def opened(**states: State) -> dict[str, Checkpoint]:
    return {name: open_checkpoint(s, name=name) for name, s in states.items()}


def flat(origin: State) -> np.ndarray:
    return np.concatenate(
        [t.double().numpy().ravel() for n, t in origin.items() if n != "norm.weight"]
    )


def cosine(one: np.ndarray, other: np.ndarray) -> float:
    return float(one @ other / np.linalg.norm(one) / np.linalg.norm(other))


@settings(max_examples=20, deadline=None)
@given(
    sizes=st.lists(st.floats(0.01, 3), min_size=1, max_size=3),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    output=st.sampled_from([None, torch.float32, torch.bfloat16, torch.float16]),
)
def test_whole_models_against_numpy(
    sizes: list[float], dtype: torch.dtype, output: torch.dtype | None
) -> None:
    base = state(0, dtype=dtype)
    experts = {f"x{i}": moved(base, 10 + i, size) for i, size in enumerate(sizes)}
    found = relate(opened(base=base, **experts), "base", output)
    w0 = flat(base)
    taus = {name: flat(expert) - w0 for name, expert in experts.items()}
    assert found.num_entries == len(w0)
    for name, tau in taus.items():
        relation = found.relations[name]
        assert relation.cosine == pytest.approx(cosine(flat(experts[name]), w0), abs=1e-5)
        norm = np.linalg.norm(tau) / np.linalg.norm(w0)
        assert relation.relative_norm == pytest.approx(norm, rel=1e-5)
        step = torch.from_numpy(tau).float() / len(taus)
        merged = (torch.from_numpy(w0).float() + step).to(output or dtype)
        survived = (merged != torch.from_numpy(w0).to(output or dtype)).numpy() & (tau != 0)
        assert relation.survives == pytest.approx(survived.sum() / (tau != 0).sum(), abs=1e-9)
    for pair in combinations(taus, 2):
        expected = cosine(taus[pair[0]], taus[pair[1]])
        assert found.delta_cosines[pair] == pytest.approx(expected, abs=1e-5)
        raw = cosine(flat(experts[pair[0]]), flat(experts[pair[1]]))
        assert found.raw_cosines[pair] == pytest.approx(raw, abs=1e-5)


def test_a_sample_tells_what_the_whole_tells(tmp_path: Path) -> None:
    """Two million entries of unequal tensors; a twentieth of them is read."""
    base = state(0, 10_000)
    states = {"base": base, "near": moved(base, 1, 0.05), "far": moved(base, 2, 0.6)}
    states["near"]["layers.3.w"] = base["layers.3.w"].clone()  # a part that was not trained
    for name, one in states.items():
        save_file(one, tmp_path / f"{name}.safetensors")
    files = {name: open_checkpoint(tmp_path / f"{name}.safetensors", name=name) for name in states}
    whole = relate(files, "base", torch.bfloat16, sample=10**9)
    sample = relate(files, "base", torch.bfloat16, sample=100_000)
    assert whole.num_entries == 1_600_000
    assert 90_000 < sample.num_entries < 130_000
    assert sample == relate(opened(**states), "base", torch.bfloat16, sample=100_000)
    for name in ("near", "far"):
        one, other = whole.relations[name], sample.relations[name]
        assert other.cosine == pytest.approx(one.cosine, abs=0.005)
        assert other.relative_norm == pytest.approx(one.relative_norm, rel=0.02)
        assert other.survives == pytest.approx(one.survives, abs=0.01)
    assert sample.mean_delta_cosine == pytest.approx(whole.mean_delta_cosine, abs=0.02)


def test_tensors_count_by_their_size_and_not_by_what_is_read_of_them() -> None:
    """Small tensors are read whole and a large one is not: the large one is most of the model."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"large.w": (1000, 1000)} | {f"small{i}.w": (10, 100) for i in range(100)}
    base = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    expert = {name: t if name == "large.w" else 3 * t for name, t in base.items()}
    models = opened(base=base, x=expert)
    whole, sample = relate(models, "base", sample=10**9), relate(models, "base", sample=100_000)
    assert sample.num_entries < 300_000
    expected = whole.relations["x"].relative_norm
    assert expected == pytest.approx(2 * math.sqrt(100_000 / 1_100_000), rel=0.02)
    assert sample.relations["x"].relative_norm == pytest.approx(expected, rel=0.02)


def test_tensors_that_have_to_be_computed_are_computed_sparingly() -> None:
    """As an adapter's: eight of forty stand for all of them."""
    generator = torch.Generator().manual_seed(0)
    base = {f"layers.{i}.w": torch.randn(100, 100, generator=generator) for i in range(40)}
    base["kept.w"] = torch.randn(400, 1000, generator=generator)
    origin = open_checkpoint(base, name="base")
    made: list[str] = []

    def make(name: str) -> torch.Tensor:
        made.append(name)
        return base[name] * 1.1

    tensors: dict[str, str | Made] = {"kept.w": "kept.w"}
    for name in base:
        if name != "kept.w":
            tensors[name] = Made((100, 100), torch.float32, partial(make, name))
    adapted = Derived(origin, tensors, name="x", change="larger")
    found = relate({"base": origin, "x": adapted}, "base", sample=100_000)
    assert len(made) == 8
    assert found.relations["x"].relative_norm == pytest.approx(0.1 * math.sqrt(0.5), rel=0.02)


def test_fine_tunes_are_not_warned_of() -> None:
    base = state(0)
    found = relate(opened(base=base, x=moved(base, 1, 0.02), y=moved(base, 2, 0.1)), "base")
    assert found.warnings() == []


def test_strangers_are_named_with_figures() -> None:
    base = state(0)
    models = opened(base=base, near=moved(base, 1, 0.02), x=state(2), y=state(3))
    texts = relate(models, "base").warnings()
    assert [text.partition(" (")[0] for text in texts] == [
        "x: looks unrelated to the base",
        "y: looks unrelated to the base",
        texts[2],
    ]
    assert "mean cosine between task vectors 0." in texts[2]
    assert "near 0.02" in texts[2]
    x = relate(models, "base").relations["x"]
    assert abs(x.cosine) < 0.05
    assert x.relative_norm == pytest.approx(math.sqrt(2), rel=0.05)


def test_the_wrong_base_is_guessed() -> None:
    right = state(0)
    models = opened(base=state(9), x=moved(right, 1, 0.02), y=moved(right, 2, 0.02))
    text = relate(models, "base").warnings()[-1]
    assert text.startswith("x and y look related to each other (cosine 1.000)")


def test_a_copy_of_the_base_and_a_large_change_are_told() -> None:
    base = state(0)
    large = {name: 2.5 * tensor for name, tensor in base.items()}
    texts = relate(opened(base=base, copy=state(0), large=large), "base").warnings()
    assert texts[0].startswith("copy: is the base in all 6,400 entries")
    assert texts[1].startswith("large: its task vector is as large as the base's weights (cosine 1")


def test_what_bfloat16_loses_is_told_with_the_way_out() -> None:
    base = state(0)
    models = opened(base=base, x=moved(base, 1, 0.0003))
    (text,) = relate(models, "base", torch.bfloat16).warnings()
    assert "survive in bfloat16 at weight 1; `dtype: float32` keeps them" in text
    assert relate(models, "base").warnings() == []


def test_models_of_zeros_and_of_vectors_do_no_harm() -> None:
    zeros = {name: torch.zeros_like(tensor) for name, tensor in state(0).items()}
    assert math.isnan(relate(opened(base=zeros, x=zeros), "base").relations["x"].cosine)
    vectors = {"a": torch.arange(1.0, 4.0), "count": torch.tensor([3])}
    found = relate(opened(base=vectors, x={**vectors, "a": vectors["a"] + 1}), "base")
    assert found.num_entries == 3
    assert relate(opened(base={"n": torch.tensor([1])}), "base").warnings() == []


def test_three_7b_models_in_two_seconds(tmp_path: Path) -> None:
    folders = {name: sparse_model(tmp_path / name) for name in ("base", "math", "code")}
    checkpoints = open_family(folders, "base").checkpoints
    start = time.perf_counter()
    found = relate(checkpoints, "base")
    assert time.perf_counter() - start < 2.0
    assert SAMPLE < found.num_entries < 2 * SAMPLE


def test_an_expert_that_is_the_base_has_no_direction() -> None:
    base = state(0)
    one, other = moved(base, 1, 0.1), moved(base, 2, 0.1)
    related = relate(opened(base=base, same=base, one=one, other=other), "base")
    assert related.mean_delta_cosine_of("same") is None
    assert related.mean_delta_cosine_of("one") == related.delta_cosines["one", "other"]
    with_column = relatedness_table(related).columns[3]
    assert next(iter(with_column.cells)) == "-"
    assert "nan" not in "".join(map(str, with_column.cells))
