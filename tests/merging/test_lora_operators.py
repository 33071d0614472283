"""LoRA at rank level. Oracles: dense float64 numpy; PEFT's add_weighted_adapter; scikit-learn."""

from __future__ import annotations

import itertools
import warnings
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from adapter_folders import ATTENTION, load, lora, merged_by_peft, tiny_gpt2, tiny_llama
from numpy.typing import NDArray
from safetensors.torch import load_file

from evomerge.checkpoints.adapters import Adapted
from evomerge.checkpoints.anatomy import anatomy_of
from evomerge.checkpoints.family import open_family
from evomerge.checkpoints.open import Checkpoint
from evomerge.errors import CandidateError, ConfigurationError
from evomerge.experiment.recipes import open_recipe_models
from evomerge.merging.materialise import Merger
from evomerge.merging.operators import lora as lora_operators
from evomerge.merging.operators.lora_lego import clusters
from evomerge.recipe import Merge, ModelSource, Recipe
from evomerge.results.adapter_export import export_adapter

Array = NDArray[np.float64]
TOLERANCE = 1e-5
ALL = [*ATTENTION, "gate_proj", "down_proj"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bases and adapters: of differing ranks and scales, on other modules, with trained biases."""
    found = tmp_path_factory.mktemp("models")
    llama, gpt2 = tiny_llama(found / "llama"), tiny_gpt2(found / "gpt2")
    lora(llama, found / "a", target_modules=ALL, lora_alpha=5, rank_pattern={"v_proj": 5})
    lora(llama, found / "b", target_modules=[*ATTENTION, "embed_tokens"], r=2, seed=2)
    lora(llama, found / "c", target_modules=ALL, lora_alpha=5, seed=3)
    lora(llama, found / "biased", target_modules=ATTENTION, bias="all", seed=4)
    lora(gpt2, found / "g", target_modules=["c_attn", "c_fc"], seed=5)
    lora(gpt2, found / "h", target_modules=["c_attn", "c_proj"], r=2, seed=6)
    return found


def recipe_of(
    folder: Path, operator: str, names: str, base: str = "llama", **values: Any
) -> Recipe:
    models = {"base": base} | {name: name for name in names.split()}
    return Recipe(
        base="base",
        models={name: ModelSource(path=str(folder / path)) for name, path in models.items()},
        default=Merge(operator=operator, parameters=values),
    )


def opened(recipe: Recipe) -> dict[str, Checkpoint]:
    return open_family({n: s.path for n, s in recipe.models.items()}, recipe.base).checkpoints


def merged(recipe: Recipe) -> dict[str, torch.Tensor]:
    checkpoints = opened(recipe)
    return dict(Merger(checkpoints, anatomy_of(checkpoints["base"]), "base").tensors(recipe))


def product(model: Checkpoint, name: str) -> Array | None:
    """An adapter's change of a tensor, dense, as it is stored; from the file's own tensors."""
    assert isinstance(model, Adapted)
    change = model.adapter.tensors.low_rank.get(name)
    if change is None:
        return None
    a, b = (model.adapter.stored.tensor(n).double().numpy() for n in (change.a, change.b))
    dense: Array = change.scale * (b @ a)
    return dense.T if change.transposed else dense


def check(recipe: Recipe, expected: Any) -> None:
    """Compare with expected(name, {source: dense change}) where any source changes a tensor."""
    checkpoints = opened(recipe)
    sources = [name for name in checkpoints if name != "base"]
    count = 0
    for name, tensor in merged(recipe).items():
        products = {k: product(checkpoints[k], name) for k in sources}
        origin = checkpoints["base"].tensor(name).double().numpy()
        known = {k: p for k, p in products.items() if p is not None}
        wanted = origin + expected(name, known) if known else origin
        np.testing.assert_allclose(tensor.double().numpy(), wanted, atol=TOLERANCE, err_msg=name)
        count += bool(known)
    assert count > 4


WEIGHTS = {"a": 0.7, "b": -0.4, "c": 1.3, "g": 0.7, "h": -0.4}
CASES = [("a b c", "llama"), ("a", "llama"), ("g h", "gpt2")]


def weights_of(names: str) -> dict[str, float]:
    return {name: WEIGHTS[name] for name in names.split()}


@pytest.mark.parametrize(("names", "base"), CASES)
def test_concatenation_is_the_weighted_sum(names: str, base: str, folder: Path) -> None:
    recipe = recipe_of(folder, "lora_concat", names, base, weight=weights_of(names))
    check(recipe, lambda _, changes: sum(WEIGHTS[k] * p for k, p in changes.items()))
    dense = recipe_of(folder, "task_arithmetic", names, base, weight=weights_of(names))
    for name, tensor in merged(dense).items():
        torch.testing.assert_close(merged(recipe)[name], tensor, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("rank", [1, 3, 16])
@pytest.mark.parametrize(("names", "base"), CASES)
def test_svd_is_the_nearest_matrix_of_its_rank(
    names: str, base: str, rank: int, folder: Path
) -> None:
    def expected(_: str, changes: dict[str, Array]) -> Array:
        u, s, v = np.linalg.svd(
            sum(WEIGHTS[k] * p for k, p in changes.items()), full_matrices=False
        )
        nearest: Array = (u * s)[:, :rank] @ v[:rank]
        return nearest

    check(recipe_of(folder, "lora_svd", names, base, weight=weights_of(names), rank=rank), expected)


@pytest.mark.parametrize(("operator", "how"), [("lora_concat", "cat"), ("lora_svd", "svd")])
def test_as_peft_combines_adapters(operator: str, how: str, folder: Path) -> None:
    """add_weighted_adapter, of adapters on the same modules."""
    import peft

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.PeftModel.from_pretrained(load(folder / "llama"), folder / "a", "a")
        model.load_adapter(folder / "c", "c")
        model.add_weighted_adapter(["a", "c"], [0.7, 1.3], "both", how, svd_rank=4)
        model.set_adapter("both")
        whole = model.merge_and_unload().state_dict()
    values = {"weight": weights_of("a c")} | ({"rank": 4} if how == "svd" else {})
    for name, tensor in merged(recipe_of(folder, operator, "a c", **values)).items():
        torch.testing.assert_close(tensor, whole[name], atol=TOLERANCE, rtol=0)


# --- LoRA-LEGO ------------------------------------------------------------------------------------


def spread_of(points: Array, labels: Any) -> float:
    """The sum of squared distances to the means of clusters."""
    return sum(
        float(((own - own.mean(0)) ** 2).sum())
        for own in (points[np.asarray(labels) == c] for c in set(labels))
    )


@pytest.mark.parametrize("count", [1, 2, 3])
def test_clusters_are_the_best_partition(count: int) -> None:
    """Brute force over all of them."""
    points = np.random.default_rng(count).normal(size=(7, 4))
    labels = clusters(points @ points.T, count, np.random.default_rng(0))
    least = min(spread_of(points, p) for p in itertools.product(range(count), repeat=7))
    assert len(set(labels)) == count
    assert spread_of(points, labels) == pytest.approx(least)


def test_clusters_are_as_tight_as_scikit_learns() -> None:
    from sklearn.cluster import KMeans

    points = np.random.default_rng(1).normal(size=(48, 200)) + 2 * np.eye(48, 200)
    labels = clusters(points @ points.T, 16, np.random.default_rng(0))
    theirs = KMeans(16, n_init=10, random_state=0).fit(points).inertia_
    assert spread_of(points, labels) <= 1.02 * theirs
    doubled = np.concatenate([points[:5], points[:5]])
    labels = clusters(doubled @ doubled.T, 9, np.random.default_rng(0))
    assert sorted(labels[:5]) == list(range(5))  # five points, however many clusters are asked for
    assert list(labels[:5]) == list(labels[5:])


def units_of(model: Checkpoint, name: str) -> tuple[list[Array], float]:
    assert isinstance(model, Adapted)
    a, b, scale = model.adapter.factors(name)
    pairs = zip(a.double().numpy(), b.double().numpy().T, strict=True)
    return [np.concatenate(pair) for pair in pairs], scale


def by_hand(
    folder: Path, names: str, weights: dict[str, float], rank: int, **flags: bool
) -> dict[str, Array]:
    """The paper's steps one by one, with scikit-learn's clusters begun at ours."""
    recipe = recipe_of(folder, "lora_lego", names, weight=weights, rank=rank)
    models = opened(recipe)
    found = {}
    for name in models["base"].names:
        adapters = [
            (k, *units_of(m, name))
            for k, m in models.items()
            if isinstance(m, Adapted) and name in m.adapter.tensors.low_rank
        ]
        if not adapters or "embed" in name:
            continue
        scale = np.mean([s for _, _, s in adapters])
        cut = len(next(u for _, u, _ in adapters)[0]) - models["base"].shape(name)[0]
        units, owners = [], []
        for k, own, s in adapters:
            for unit in own:
                units.append(np.concatenate([unit[:cut], unit[cut:] * s / scale]))
                owners.append(k)
        points = np.array(units)
        wanted = rank or max(len(own) for _, own, _ in adapters)
        seed = lora_seed(name)
        labels = clusters(points @ points.T, wanted, seed)
        delta = np.zeros(models["base"].shape(name))
        for c in range(labels.max() + 1):
            own = [i for i in range(len(units)) if labels[i] == c]
            total = sum(weights[owners[i]] for i in own)
            mean = sum(weights[owners[i]] / total * units[i] for i in own)
            if flags.get("keep_norms", True):
                usual = sum(weights[owners[i]] / total * np.linalg.norm(units[i]) for i in own)
                mean = mean * usual / np.linalg.norm(mean)
            delta += np.outer(mean[cut:], mean[:cut]) * scale
        if flags.get("keep_variance", True):
            ranks = [len(own) for _, own, _ in adapters]
            delta *= np.sqrt(np.mean(ranks) / (labels.max() + 1))
        found[name] = delta
    return found


def lora_seed(name: str) -> np.random.Generator:
    import hashlib

    key = hashlib.sha256(f"lora_lego\0{0}\0{name}".encode()).digest()
    return np.random.default_rng(int.from_bytes(key[:8], "little"))


@pytest.mark.parametrize(
    "flags", [{}, {"keep_norms": False}, {"keep_variance": False}], ids=lambda f: str([*f])
)
@pytest.mark.parametrize("rank", [0, 1, 4, 64])
def test_lego_is_the_paper_step_by_step(rank: int, flags: dict[str, bool], folder: Path) -> None:
    weights = {"a": 0.5, "c": 2.0}
    expected = by_hand(folder, "a c", weights, rank, **flags)
    recipe = recipe_of(folder, "lora_lego", "a c", weight=weights, rank=rank, **flags)
    check(recipe, lambda name, _: expected[name])


def test_copies_of_one_adapter_are_that_adapter(folder: Path) -> None:
    recipe = recipe_of(folder, "lora_lego", "a")
    models = {**recipe.models, "twin": recipe.models["a"], "third": recipe.models["a"]}
    found = merged(recipe.model_copy(update={"models": models}))
    for name, tensor in merged_by_peft(folder / "llama", folder / "a").items():
        if name in found:
            torch.testing.assert_close(found[name], tensor, atol=TOLERANCE, rtol=0)


def test_other_seeds_cluster_otherwise_and_weights_do_not(folder: Path) -> None:
    recipe = recipe_of(folder, "lora_lego", "a b c", rank=2)
    checkpoints = opened(recipe)
    merger = Merger(checkpoints, anatomy_of(checkpoints["base"]), "base", 2**26)
    with (
        mock.patch.object(lora_operators, "read_factors", wraps=lora_operators.read_factors),
        mock.patch("evomerge.merging.operators.lora_lego.clusters", wraps=clusters) as counted,
    ):
        dict(merger.tensors(recipe))
        once = counted.call_count
        again = recipe_of(folder, "lora_lego", "a b c", rank=2, weight={"a": 2, "b": 1, "c": 0})
        dict(merger.tensors(again))
        assert counted.call_count == once > 0
        dict(merger.tensors(recipe.model_copy(update={"mask_seed": 1})))
        assert counted.call_count == 2 * once


# --- what all of them do --------------------------------------------------------------------------


@pytest.mark.parametrize("operator", ["lora_concat", "lora_svd", "lora_lego"])
def test_trained_biases_are_merged_as_by_task_arithmetic(operator: str, folder: Path) -> None:
    weights = {"biased": 0.5, "a": 0.25}
    found = merged(recipe_of(folder, operator, "a biased", weight=weights))
    models = opened(recipe_of(folder, operator, "a biased"))
    name = "model.layers.0.self_attn.q_proj.bias"
    taus = {k: models[k].tensor(name) - models["base"].tensor(name) for k in weights}
    assert float(taus["biased"].abs().max()) > 0.01
    total = sum(weights.values()) if operator == "lora_lego" else 1.0
    expected = models["base"].tensor(name) + sum(w / total * taus[k] for k, w in weights.items())
    torch.testing.assert_close(found[name], expected, atol=1e-6, rtol=0)


def test_layers_that_are_moved_bring_their_factors(folder: Path) -> None:
    def stacked(operator: str, slots: Any) -> dict[str, torch.Tensor]:
        plain = recipe_of(folder, operator, "a c", weight=weights_of("a c"))
        return merged(Recipe.model_validate({**plain.model_dump(), "slots": slots}))

    slots = [{"layer": 1}, {"layer": 0}, {"layer": 1}]
    dense = stacked("task_arithmetic", slots)
    for name, tensor in stacked("lora_concat", slots).items():
        torch.testing.assert_close(tensor, dense[name], atol=TOLERANCE, rtol=0)
    with pytest.raises(CandidateError, match="'a' gives another layer than the base"):
        stacked("lora_concat", [{"layer": 1}, {"layer": 1, "layers": {"a": 0}}])


def test_post_steps_follow(folder: Path) -> None:
    values = {"lines_alpha": 0.5, "lines_beta": 1.0}
    weight = weights_of("a c")
    one = merged(recipe_of(folder, "lora_concat | lines", "a c", weight=weight, **values))
    other = merged(recipe_of(folder, "task_arithmetic | lines", "a c", weight=weight, **values))
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, other[name], atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize(
    ("operator", "values", "rank"),
    [
        ("lora_concat", {"weight": {"a": 0.7, "c": 1.3}}, 8),
        ("lora_svd", {"weight": {"a": 0.7, "c": 1.3}, "rank": 4}, 4),
        ("lora_lego", {"rank": 4}, 4),
        ("lora_lego", {}, 5),
    ],
)
def test_they_are_written_as_adapters_of_their_rank(
    operator: str, values: dict[str, Any], rank: int, folder: Path, tmp_path: Path
) -> None:
    recipe = recipe_of(folder, operator, "a c", **values)
    report = export_adapter(recipe, opened(recipe), tmp_path / "adapter")
    assert report.rank == rank
    assert report.error < 1e-4
    if operator == "lora_concat":
        assert report.num_truncated == 0
        written = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
        name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
        models = opened(recipe)
        parts = [models[k].adapter.factors("model.layers.0.self_attn.q_proj.weight") for k in "ac"]  # type: ignore[attr-defined]
        assert torch.equal(written[name], torch.cat([a for a, _, _ in parts]))
    by_peft = merged_by_peft(folder / "llama", tmp_path / "adapter")
    for name, tensor in merged(recipe).items():
        torch.testing.assert_close(by_peft[name], tensor, atol=TOLERANCE, rtol=0)


def test_a_source_that_is_no_adapter_is_refused_before_the_merge(folder: Path) -> None:
    recipe = recipe_of(folder, "lora_svd", "a")
    models = {**recipe.models, "full": ModelSource(path=str(folder / "llama"))}
    mixed = recipe.model_copy(update={"models": models})
    message = r"model full: lora_svd merges LoRA adapters by their factors, and .*llama is none"
    with pytest.raises(ConfigurationError, match=message):
        open_recipe_models(mixed, notes=[])
    with pytest.raises(ConfigurationError, match=message):
        merged(mixed)
    # Elsewhere in the recipe, too, and only where it is merged so.
    inside = {"default": Merge(operator="linear"), "outside": {"head": Merge(operator="lora_lego")}}
    with pytest.raises(ConfigurationError, match="model full: lora_lego"):
        open_recipe_models(mixed.model_copy(update=inside), notes=[])
    only = Merge(operator="lora_svd", sources=("a",))
    assert open_recipe_models(mixed.model_copy(update={"default": only}), notes=[])


def test_a_search_over_models_that_are_no_adapters_is_refused() -> None:
    from toys import Toy

    from evomerge.experiment.wire import wire

    space = {
        "kind": "weights",
        "operator": "lora_concat",
        "search": {"weight": {"per": ["expert"], "range": [0, 1]}},
    }
    toy = Toy(keys={"space": space})
    with pytest.raises(ConfigurationError, match="model left: lora_concat merges LoRA adapters"):
        wire(toy.config(), toy.given())
