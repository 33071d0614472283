"""The kernels and torch compute the same; numpy and brute force say what."""

from __future__ import annotations

import itertools
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.merging import eager, kernels, operator, order, passes, reads
from evomerge.merging.cache import Cache
from evomerge.merging.order import Counted, order_of, rank_into
from evomerge.merging.passes import Agreement, Selection
from evomerge.merging.reads import Models

SEGMENTS = (slice(0, 5000), slice(5000, 5001), slice(5001, 9000))
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def data(seed: int, num_sources: int, dtypes: tuple[torch.dtype, ...]):
    """A base, sources with many zero deltas, draws and ranks, of 9,000 entries."""
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(9000, generator=generator)
    sources = []
    for k in range(num_sources):
        delta = torch.randn(9000, generator=generator)
        # Multiples of a half cancel exactly now and then.
        delta = delta.mul(2).round().div(2) * (torch.rand(9000, generator=generator) < 0.6)
        sources.append((base + delta).to(dtypes[k % len(dtypes)]))
    drawn = [
        torch.randint(-(2**15), 2**15, (9000,), dtype=torch.int16, generator=generator)
        for _ in range(2 * num_sources)
    ]
    return base.to(dtypes[-1]), sources, drawn[:num_sources], drawn[num_sources:]


def ranks_of(tau, shape):
    ranks = np.empty(tau.numel(), np.int16)
    rank_into(tau.split(4), shape, ranks)
    return ranks


def weighted_sum(sources, weights, out):
    each = np.array(weights)[:, None]
    return passes.weighted_sum(Models(None, sources, [slice(0, len(out))]), each, out)


def limits_of(mode: str, generator: np.random.Generator, shape: tuple[int, int]):
    low, high = {
        "all": ((0, 0), (0, 0)),
        "at_least": ((0, 2), (np.inf, np.inf)),
        "magnitude": ((0, 0.8), (0.8, 3)),
        "draw": ((-30000, 30000), (0, 0)),
        "rank": ((-20000, 20000), (0, 0.3)),
    }[mode]
    limits = [
        generator.uniform(*bounds, shape) if np.isfinite(bounds).all() else np.full(shape, np.inf)
        for bounds in (low, high)
    ]
    return np.stack(limits, -1)


drawn_cases = given(
    seed=st.integers(0, 10_000),
    num_sources=st.sampled_from([1, 3, 5, 9]),  # at once, and in turns that have to be filled
    mode=st.sampled_from(["all", "at_least", "magnitude", "draw", "rank"]),
    consensus=st.sampled_from(["sum", "agree", "agree_normalised"]),
    dtypes=st.sampled_from([*((d,) for d in DTYPES), DTYPES]),
    divide=st.booleans(),
    zero_sum=st.sampled_from(["plus", "majority"]),
)


@settings(max_examples=10, deadline=None)  # nearly every one compiles a kernel of its own
@drawn_cases
def test_kernels_equal_torch(**case):
    check_equal(**case)


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@drawn_cases
def test_most_kernels_equal_torch(**case):
    check_equal(**case)


@pytest.mark.parametrize("zero_sum", ["plus", "majority"])
@pytest.mark.parametrize("consensus", ["sum", "agree", "agree_normalised"])
@pytest.mark.parametrize("mode", ["all", "at_least", "draw", "rank"])
def test_tensors_of_several_parts_are_as_those_of_one(monkeypatch, mode, consensus, zero_sum):
    """Signs are counted in all parts of a tensor before the first is written."""
    monkeypatch.setattr(operator, "CHUNK", 700)
    check_equal(5, 3, mode, consensus, DTYPES[:1], True, zero_sum)


def check_equal(seed, num_sources, mode, consensus, dtypes, divide, zero_sum):
    base, sources, draws, ranks = data(seed, num_sources, dtypes)
    generator = np.random.default_rng(seed)
    shape = (num_sources, len(SEGMENTS))
    chosen = Selection(
        mode,
        limits_of(mode, generator, shape),
        generator.uniform(-0.5, 1.5, shape).astype(np.float32),
        divide=divide and mode == "rank",
    )
    agreement = Agreement(consensus, generator.uniform(0.5, 1.5, num_sources), 0.7, zero_sum)
    models = Models(base, sources, SEGMENTS, draws, ranks)
    fast, slow = torch.empty(9000), torch.empty(9000)
    assert passes.add_task_vectors(models, chosen, agreement, fast)
    eager.add_task_vectors(models, chosen, agreement, slow)
    # A sum that is zero but for the last bit takes one sign here and the other one there.
    unequal = (fast - slow).abs() > 1e-5 * slow.abs().clamp(min=1)
    assert int(unequal.sum()) <= 2
    before, after = passes.kept_mass(models, chosen)
    expected = eager.kept_mass(models, chosen)
    assert np.allclose(before, expected[0], rtol=1e-5)
    assert np.allclose(after, expected[1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_weighted_sums_are_numpys(dtype):
    _, sources, _, _ = data(1, 5, DTYPES)
    weights = [0.3, -0.7, 1.1, 0.0, 2.0]
    out = torch.empty(9000, dtype=dtype)
    assert weighted_sum(sources, weights, out)
    exact = sum(w * s.double() for w, s in zip(weights, sources, strict=True))
    # Half a step of the dtype, and a little for the sum in float32.
    assert (
        (out.double() - exact).abs() <= exact.abs() * torch.finfo(dtype).eps * 0.51 + 1e-6
    ).all()


def every_half(dtype: torch.dtype) -> torch.Tensor:
    return torch.arange(2**16, dtype=torch.int32).to(torch.uint16).view(dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_every_finite_half_is_read_as_torch_reads_it(dtype):
    halves = every_half(dtype)
    halves = halves[halves.float().isfinite()]
    out = torch.empty(len(halves))
    assert weighted_sum([halves], [1.0], out)
    assert torch.equal(out, halves.float())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_halves_are_rounded_as_torch_rounds_them(dtype):
    halves = every_half(dtype)
    ascending = halves[halves.float().isfinite()].float().unique()
    middles = (ascending[1:].double() + ascending[:-1].double()).div(2).float()
    up, down = torch.tensor(torch.inf), torch.tensor(-torch.inf)
    close = [ascending, middles, middles.nextafter(up), middles.nextafter(down)]
    values = torch.cat([*close, torch.randn(9999).mul(1e-6), torch.randn(9999).mul(1e4)])
    out = torch.empty(len(values), dtype=dtype)
    assert weighted_sum([values], [1.0], out) == bool(values.to(dtype).isfinite().all())
    assert torch.equal(out.view(torch.int16), values.to(dtype).view(torch.int16))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bad", [torch.inf, -torch.inf, torch.nan])
def test_what_is_not_finite_is_noticed(dtype, bad):
    values = torch.ones(3000)
    values[2999] = bad
    out = torch.empty(3000, dtype=dtype)
    assert weighted_sum([values], [1.0], out) is False
    assert not out[2999].isfinite()
    assert out[:2999].isfinite().all()


def test_a_value_beyond_the_output_dtype_is_not_finite():
    assert weighted_sum([torch.full((3,), 7e4)], [1.0], torch.empty(3).half()) is False
    largest = torch.full((3,), torch.finfo(torch.float32).max)
    assert weighted_sum([largest], [1.0], torch.empty(3).bfloat16()) is False


def test_threads_change_no_bit(monkeypatch):
    monkeypatch.setattr(reads, "_PER_THREAD", 700)
    base, sources, draws, _ = data(2, 3, DTYPES)
    chosen = Selection("draw", np.full((3, 3, 2), 5000.0), np.ones((3, 3)))
    agreement = Agreement("agree_normalised", np.ones(3), 1.0, "majority")
    outs = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            outs.append(torch.empty(9000, dtype=torch.bfloat16))
            models = Models(base, sources, SEGMENTS, draws)
            passes.add_task_vectors(models, chosen, agreement, outs[-1])
    finally:
        torch.set_num_threads(before)
    assert torch.equal(outs[1], outs[0])
    assert torch.equal(outs[2], outs[0])


@pytest.mark.parametrize("most", [-1.0, 0.0, 1.0])
def test_a_zero_sum_takes_the_sign_of_most_of_its_tensor(most):
    # 3,000 entries in two tiles; the second one's sums say what the first one's zeros become.
    base, one = torch.zeros(3000), torch.full((3000,), 2.0)
    other = torch.full((3000,), -2.0)
    other[2500:] = 2.0 * most - 2.0 * (most < 0) if most else -2.0
    one[2500:] = 2.0 * most if most else 2.0
    chosen = Selection("all", np.zeros((2, 1, 2)), np.ones((2, 1)))
    agreement = Agreement("agree", np.ones(2), 1.0, "majority")
    for add in (passes.add_task_vectors, eager.add_task_vectors):
        out = torch.empty(3000)
        add(Models(base, [one, other], [slice(0, 3000)]), chosen, agreement, out)
        assert (out[:2500] == 2.0 * most).all()


def test_without_numba_the_user_is_told_and_merges_all_the_same(monkeypatch):
    reads.kernels.cache_clear()
    monkeypatch.setitem(__import__("sys").modules, "evomerge.merging.kernels", None)
    try:
        out = torch.empty(2)
        with pytest.warns(UserWarning, match="several times slower"):
            assert weighted_sum([torch.ones(2)], [0.5], out) is None
        assert out.tolist() == [0.5, 0.5]
    finally:
        reads.kernels.cache_clear()


def test_what_the_kernels_cannot_read_goes_through_torch():
    double = torch.linspace(0, 1, 7, dtype=torch.float64)
    out = torch.empty(7, dtype=torch.float64)
    assert weighted_sum([double], [2.0], out) is None
    assert torch.allclose(out, 2 * double)
    assert kernels.address_of(double) is None


# --- orders and ranks -----------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 1000),
    size=st.integers(1, 3000),
    piece=st.integers(1, 900),
    scale=st.sampled_from([1e-30, 1e-3, 1.0, 1e20]),
)
@pytest.mark.parametrize("how", ["numba", "numpy", "as on a GPU"])
def test_an_order_is_a_sort(how, seed, size, piece, scale):
    values = torch.randn(size, generator=torch.Generator().manual_seed(seed)) * scale
    values[:: 1 + seed % 7] = values[0]  # ties
    with pytest.MonkeyPatch.context() as patch:
        if how == "numpy":
            patch.setattr(order, "kernels", lambda: None)
        sorted_ = order_of(lambda: values.split(piece), at_once=how == "as on a GPU")
        counted = Counted(lambda: values.split(piece))
        some = [0, size - 1, *range(0, size, 1 + size // 20)]
        found = [counted.at(place) for place in some]
    expected = np.sort(values.abs().numpy())
    assert [sorted_.at(place) for place in range(size)] == expected.tolist()
    assert sorted_.nbytes <= 12 * size + 100
    assert found == expected[some].tolist()
    assert len(counted) == len(sorted_) == size


def test_many_places_cost_no_more_readings_than_a_sort():
    values, readings = torch.randn(1000), []

    def pieces():
        readings.append(1)
        return values.split(300)

    counted, expected = Counted(pieces), np.sort(values.abs().numpy())
    found = [counted.at(place) for place in [*range(0, 1000, 7), *range(0, 1000, 7)]]
    assert found == expected[::7].tolist() * 2
    assert len(readings) <= 6


def test_ranks_are_the_places_in_each_row():
    tau = torch.tensor([[3.0, -1.0, 2.0], [0.0, -9.0, 5.0]])
    ranks = ranks_of(tau.view(-1), (2, 3)).astype(int) + 2**15
    assert ranks.reshape(2, 3).tolist() == [[65535, 0, 32768], [0, 65535, 32768]]
    assert (ranks_of(tau.view(-1), (6, 1)) == -(2**15)).all()
    assert sorted(ranks_of(tau.view(-1), (6,)).tolist())[-1] == 2**15 - 1


def test_wide_rows_have_ranks_that_still_rise():
    tau = torch.arange(100_000, dtype=torch.float32)
    ranks = ranks_of(tau, (100_000,)).astype(int)
    assert ranks[0] == -(2**15)
    assert ranks[-1] == 2**15 - 1
    assert (np.diff(ranks) >= 0).all()


# --- the cache ------------------------------------------------------------------------------------


class Spillable:
    def __init__(self) -> None:
        self.array = np.arange(100_000, dtype=np.uint16)

    @property
    def nbytes(self) -> int:
        return 8 if isinstance(self.array, np.memmap) else self.array.nbytes

    def spill(self, move) -> None:
        self.array = move(self.array)


def test_what_does_not_fit_goes_to_files_that_have_no_name(tmp_path, monkeypatch):
    monkeypatch.setattr("evomerge.merging.cache.cache_folder", lambda: tmp_path)
    cache = Cache(budget_bytes=250_000)
    made = itertools.count()
    kept = [cache.get(key, lambda: (next(made), Spillable())[1]) for key in "abc"]
    again = [cache.get(key, lambda: (next(made), Spillable())[1]) for key in "abc"]
    assert next(made) == 3
    assert [isinstance(one.array, np.memmap) for one in kept] == [False, True, True]
    assert all(np.array_equal(one.array, Spillable().array) for one in again)
    assert cache.used_bytes <= 250_000
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("is_filled_in_place", [False, True])
def test_files_of_candidates_long_ago_do_not_fill_the_disk(
    tmp_path, monkeypatch, is_filled_in_place
):
    """Each candidate prepares something of its own, as where a prepare parameter is searched."""
    monkeypatch.setattr("evomerge.merging.cache.cache_folder", lambda: tmp_path)
    size, cache = 200_000, Cache(budget_bytes=100)

    def free_bytes(folder):
        return SimpleNamespace(free=40 * size - cache._files.nbytes)

    monkeypatch.setattr("evomerge.merging.cache.shutil.disk_usage", free_bytes)

    def make():
        made = Spillable()
        if is_filled_in_place:
            made.array = cache.room(100_000, np.uint16)
        return made

    in_files = []
    for number in range(30):
        cache.next_candidate()
        for place in range(2):
            kept = cache.get((number, place), make)
            assert isinstance(kept.array, np.memmap)
            assert kept is cache.get((number, place), make)
            del kept
        in_files.append(cache._files.nbytes // size)
    assert in_files[:5] == [2, 4, 6, 8, 10]  # a quarter of the disk
    assert max(in_files) == 10


def test_room_in_memory_is_made_of_what_is_idle():
    cache = Cache(budget_bytes=250_000)
    for number in range(3):
        cache.next_candidate()
        made = Spillable()
        made.array = cache.room(100_000, np.uint16)
        cache.get(number, lambda made=made: made)
    assert not isinstance(made.array, np.memmap)


@pytest.mark.parametrize("seconds", [0.0, 60.0])
def test_what_was_dear_to_make_goes_to_a_file_when_it_is_idle(tmp_path, monkeypatch, seconds):
    monkeypatch.setattr("evomerge.merging.cache.cache_folder", lambda: tmp_path)
    cache, made = Cache(budget_bytes=250_000), []

    def make(key):
        made.append(key)
        one = Spillable()
        one.seconds = seconds
        return one

    for key in "ababa":
        for _ in range(3):  # until the other one is idle
            cache.next_candidate()
        one = cache.get(key, lambda key=key: make(key))
        assert np.array_equal(one.array, Spillable().array)
    assert made == (list("ab") if seconds else list("ababa"))
    assert cache.used_bytes <= 250_000
    assert (cache._files.nbytes > 0) == (seconds > 0)


def test_memory_is_given_back_after_much_was_made(monkeypatch):
    """Some 400 MB of freed arrays between small ones that stay; the C library would keep them."""
    monkeypatch.setattr("evomerge.merging.cache._LONG", -1.0)
    cache = Cache(budget_bytes=0)
    cache.next_candidate()  # what other tests have freed is given back first
    before = resident_bytes()
    kept, freed = [], []
    for _ in range(4000):
        freed.append(np.ones(100_000, np.uint8))
        kept.append(np.ones(100, np.uint8))
    full = resident_bytes()
    del freed
    cache.next_candidate()
    assert len(kept) == 4000
    assert full - before > 3e8
    assert resident_bytes() - before < 1e8


def resident_bytes() -> int:
    """What this process has in memory of its own."""
    status = Path("/proc/self/status")
    if not status.exists():
        pytest.skip("no /proc")
    rows = dict(line.split(":", 1) for line in status.read_text().splitlines())
    return int(rows["RssAnon"].split()[0]) * 1024


def test_a_full_disk_costs_time_and_no_error(tmp_path, monkeypatch):
    monkeypatch.setattr("evomerge.merging.cache.cache_folder", lambda: tmp_path / "file" / "no")
    (tmp_path / "file").write_text("")
    cache = Cache(budget_bytes=10)
    assert isinstance(cache.get("a", Spillable), Spillable)
    assert cache.used_bytes == 0


@pytest.mark.parametrize("num_sources", [3, 9])
def test_what_is_left_out_may_be_infinite(num_sources):
    base, sources, draws, _ = data(0, num_sources, (torch.float32,))
    shape = (num_sources, len(SEGMENTS))
    chosen = Selection("draw", np.full((*shape, 2), -9000.0), np.ones(shape))
    agreement = Agreement("sum", np.ones(num_sources), 1.0)
    fast, slow = torch.empty(9000), torch.empty(9000)
    expected = base.clone()
    for source, drawn in zip(sources, draws, strict=True):
        expected += torch.where(drawn < -9000, source - base, 0)
        source[drawn >= -9000] = torch.inf
    models = Models(base, sources, SEGMENTS, draws)
    assert passes.add_task_vectors(models, chosen, agreement, fast)
    eager.add_task_vectors(models, chosen, agreement, slow)
    assert torch.allclose(fast, expected, atol=1e-5)
    assert torch.allclose(slow, expected, atol=1e-5)


def test_torch_leaves_the_models_as_they_are():
    base, sources, draws, ranks = data(3, 3, (torch.float32,))
    before = [tensor.clone() for tensor in (base, *sources)]
    shape, out = (3, len(SEGMENTS)), torch.empty(9000)
    models = Models(base, sources, SEGMENTS, draws, ranks)
    for mode in ("all", "at_least", "magnitude", "draw", "rank"):
        chosen = Selection(mode, np.ones((*shape, 2)), np.full(shape, 0.5))
        for consensus in ("sum", "agree", "agree_normalised"):
            agreement = Agreement(consensus, np.ones(3), 0.7, "majority")
            eager.add_task_vectors(models, chosen, agreement, out)
        eager.kept_mass(models, chosen)
    eager.weighted_sum(models, np.full(shape, 0.5), out)
    assert all(map(torch.equal, before, (base, *sources)))
