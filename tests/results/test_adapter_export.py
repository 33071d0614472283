"""Merges written as adapters. Oracle: PEFT loads them over the base and merges; SVD by numpy."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from adapter_folders import ATTENTION, lora, merged_by_peft, tiny_gpt2, tiny_llama
from safetensors.torch import load_file, save_file
from torch import Tensor
from toys import forked

import evomerge
from evomerge.checkpoints.adapter_config import ADAPTER_CONFIG
from evomerge.checkpoints.adapters import ADAPTER_MODEL
from evomerge.checkpoints.family import open_family
from evomerge.checkpoints.open import Checkpoint
from evomerge.errors import ConfigurationError
from evomerge.recipe import Merge, ModelSource, Recipe
from evomerge.results.adapter_export import AdapterReport, export_adapter
from evomerge.results.export import merged_tensors

EVERYTHING = ["q_proj", "v_proj", "down_proj", "lm_head", "embed_tokens"]


@dataclass(frozen=True)
class Models:
    folder: Path

    def path(self, name: str) -> Path:
        return self.folder / name

    def open(self, recipe: Recipe) -> dict[str, Checkpoint]:
        sources = {name: source.path for name, source in recipe.models.items()}
        return open_family(sources, recipe.base).checkpoints

    def recipe(
        self, *names: str, base: str = "llama", operator: str = "task_arithmetic", **parameters: Any
    ) -> Recipe:
        """A recipe of these models, with differing weights unless they are given."""
        weights = {name: 0.7 - 0.3 * i for i, name in enumerate(names)}
        return Recipe(
            base="base",
            models={
                "base": ModelSource(path=str(self.path(base))),
                **{name: ModelSource(path=str(self.path(name))) for name in names},
            },
            default=Merge(operator=operator, parameters={"weight": weights, **parameters}),
        )


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    """Bases; adapters of the Llama and of GPT-2; a full expert of each."""
    found = Models(tmp_path_factory.mktemp("models"))
    llama, gpt2 = tiny_llama(found.path("llama")), tiny_gpt2(found.path("gpt2"))
    pattern = {"v_proj": 5}
    lora(llama, found.path("a"), target_modules=ATTENTION, lora_alpha=5, rank_pattern=pattern)
    lora(llama, found.path("b"), target_modules=EVERYTHING, r=2, use_rslora=True, seed=2)
    lora(llama, found.path("biased"), target_modules=ATTENTION, bias="all", seed=3)
    lora(gpt2, found.path("c"), target_modules=["c_attn", "c_proj"], seed=4)
    lora(gpt2, found.path("d"), target_modules=["c_fc", "c_proj", "wpe"], r=2, seed=5)
    for base, name in ((llama, "full"), (gpt2, "full_gpt2")):
        moved(base, found.path(name), lambda n, t: t + 0.1 * torch.randn(t.shape))
    return found


def moved(base: Path, folder: Path, change: Callable[[str, Tensor], Tensor]) -> Path:
    """A full expert."""
    folder.mkdir()
    with torch.random.fork_rng():
        torch.manual_seed(7)
        state = load_file(base / "model.safetensors")
        save_file({n: change(n, t) for n, t in sorted(state.items())}, folder / "model.safetensors")
    (folder / "config.json").write_bytes((base / "config.json").read_bytes())
    return folder


def exported(models: Models, recipe: Recipe, folder: Path, **options: Any) -> AdapterReport:
    return export_adapter(recipe, models.open(recipe), folder, **options)


def differences(models: Models, recipe: Recipe, folder: Path) -> dict[str, float]:
    """By tensor, how far PEFT's merge of the adapter is from the full merge."""
    expected = merged_tensors(recipe, models.open(recipe))
    found = merged_by_peft(Path(recipe.models["base"].path), folder)
    assert set(expected) <= set(found)
    return {name: float((found[name] - t).abs().max()) for name, t in expected.items()}


LINEAR: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "task arithmetic": (("a", "b"), {"lambda": 0.8}),
    "averaged": (("a", "b"), {"normalize": True}),
    "averaged by weight": (("a", "b"), {"normalize": True, "compat": "mergekit"}),
    "linear": (("a", "b"), {"operator": "linear"}),
    "linear as it is": (
        ("a", "b"),
        {"operator": "linear", "normalize": False, "weight": {"a": 0.3, "b": 0.7}},
    ),
    "nothing is dropped": (("a", "b"), {"operator": "dare_linear", "density": 1.0}),
    "one of weight 0": (("a", "b"), {"weight": {"a": 0.5, "b": 0.0}}),
    "Conv1D and positions": (("c", "d"), {"base": "gpt2"}),
}


@pytest.mark.parametrize("case", LINEAR)
def test_linear_merges_of_adapters_are_exact(case: str, models: Models, tmp_path: Path) -> None:
    names, settings = LINEAR[case]
    recipe = models.recipe(*names, **settings)
    report = exported(models, recipe, tmp_path / "adapter")
    assert report.num_truncated == 0
    assert report.num_exact > 0
    assert report.error < 1e-5
    assert report.whole == ()
    assert max(differences(models, recipe, report.folder).values()) < 2e-6
    config = json.loads((report.folder / ADAPTER_CONFIG).read_text())
    ranks = {**dict.fromkeys(config["target_modules"], config["r"]), **config["rank_pattern"]}
    if case == "task arithmetic":
        assert ranks["model.layers.0.self_attn.q_proj"] == 3 + 2
        assert ranks["model.layers.0.self_attn.v_proj"] == 5 + 2
        assert ranks["model.layers.1.mlp.down_proj"] == 2
        assert report.rank == 7
    # What was written is an expert again, and a merge with it alone the same model.
    again = (
        models.open(recipe)
        | open_family(
            {"base": recipe.models["base"].path, "again": report.folder}, "base"
        ).checkpoints
    )
    for name, tensor in merged_tensors(recipe, again).items():
        assert (again["again"].tensor(name) - tensor).abs().max() < 2e-6


def test_layers_may_have_coefficients_of_their_own(models: Models, tmp_path: Path) -> None:
    data = models.recipe("a", "b").model_dump(exclude_defaults=True)
    other = {"parameters": {"weight": {"a": -0.4, "b": 1.1}}}
    slots = [{"layer": 0}, {"layer": 1, "merges": {"default": other}}]
    recipe = Recipe.model_validate({**data, "slots": slots})
    report = exported(models, recipe, tmp_path / "adapter")
    assert report.num_truncated == 0
    assert max(differences(models, recipe, report.folder).values()) < 2e-6


NOT_LINEAR: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "ties": (("a", "b"), {"operator": "ties", "density": 0.5}),
    "dare": (("a", "b"), {"operator": "dare_linear", "density": 0.5}),
    "linear that scales the base": (("a", "b"), {"operator": "linear", "normalize": False}),
    "a full expert": (("a", "full"), {}),
    "full experts alone": (("full",), {}),
    "a full GPT-2": (("c", "full_gpt2"), {"base": "gpt2"}),
}


@pytest.mark.parametrize(
    ("case", "rank"), [*((case, 3) for case in NOT_LINEAR), ("ties", 40), ("a full GPT-2", 40)]
)
def test_other_merges_are_the_nearest_of_a_rank(
    case: str, rank: int, models: Models, tmp_path: Path
) -> None:
    names, settings = NOT_LINEAR[case]
    recipe = models.recipe(*names, **settings)
    report = exported(models, recipe, tmp_path / "adapter", rank=rank)
    assert report.num_exact == 0
    assert report.rank <= rank
    lost, changed = 0.0, 0.0
    state = merged_tensors(recipe, models.open(recipe))
    base = load_file(Path(recipe.models["base"].path) / "model.safetensors")
    by_peft = merged_by_peft(Path(recipe.models["base"].path), report.folder)
    worst = 0.0
    for name, merged in state.items():
        if merged.ndim < 2:
            assert (by_peft[name] - merged).abs().max() < 2e-6, name  # kept whole
            continue
        delta = (merged.double() - base[name].double()).numpy()
        values = np.linalg.svd(delta, compute_uv=False) ** 2
        if values.sum() == 0:
            assert torch.equal(by_peft[name], merged)
            continue
        mine = float((by_peft[name].double() - merged.double()).norm()) ** 2
        assert mine == pytest.approx(values[rank:].sum(), rel=1e-3, abs=1e-8)  # Eckart & Young
        lost, changed = lost + mine, changed + values.sum()
        worst = max(worst, (mine / values.sum()) ** 0.5)
    assert report.error == pytest.approx((lost / changed) ** 0.5, rel=1e-3, abs=1e-5)
    assert report.worst[1] == pytest.approx(worst, rel=1e-3, abs=1e-5)
    assert (report.error > 0.05) == (rank == 3)


def test_exact_factors_are_cut_to_a_rank(models: Models, tmp_path: Path) -> None:
    recipe = models.recipe("a", "b")
    report = exported(models, recipe, tmp_path / "adapter", rank=4)
    assert report.rank == 4
    assert report.num_truncated == 4  # q and v of both layers, of ranks 5 and 7
    base = load_file(models.path("llama") / "model.safetensors")
    merged = merged_tensors(recipe, models.open(recipe))
    found = merged_by_peft(models.path("llama"), report.folder)
    for name in ("model.layers.0.self_attn.q_proj.weight", "model.layers.1.mlp.down_proj.weight"):
        values = np.linalg.svd((merged[name] - base[name]).numpy(), compute_uv=False)
        lost = float((found[name] - merged[name]).norm())
        assert lost == pytest.approx(float(np.sqrt((values[4:] ** 2).sum())), rel=1e-3, abs=1e-5)
    assert report.error > 0.01


def test_without_a_rank_it_is_the_adapters_sum(models: Models, tmp_path: Path) -> None:
    recipe = models.recipe("a", "b", operator="ties", density=0.5)
    assert exported(models, recipe, tmp_path / "adapter").rank == 5 + 2


def test_biases_and_norms_are_kept_whole(models: Models, tmp_path: Path) -> None:
    recipe = models.recipe("a", "biased", "full")
    report = exported(models, recipe, tmp_path / "adapter", rank=16)
    assert "model.layers.0.input_layernorm" in report.whole
    assert "model.norm" in report.whole
    assert "model.layers.1.self_attn.q_proj.base_layer.bias" in report.whole
    assert max(differences(models, recipe, report.folder).values()) < 1e-5


def test_what_fits_nowhere_is_refused(models: Models, tmp_path: Path) -> None:
    states = {
        "base": {"block.gain": torch.ones(3), "block.proj.weight": torch.eye(3)},
        "x": {"block.gain": torch.zeros(3), "block.proj.weight": torch.ones(3, 3)},
    }
    recipe = Recipe(
        base="base",
        models={name: ModelSource(path=f"memory:{name}") for name in states},
        default=Merge(operator="task_arithmetic"),
    )
    checkpoints = open_family(states, "base").checkpoints
    with pytest.raises(ConfigurationError, match=r"'block\.gain'.*no module of its own"):
        export_adapter(recipe, checkpoints, tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()


def test_nothing_to_write_is_said(models: Models, tmp_path: Path) -> None:
    recipe = models.recipe("a", weight=0.0)
    with pytest.raises(ConfigurationError, match="no weight of a linear layer"):
        exported(models, recipe, tmp_path / "adapter")


def test_models_and_strange_folders_are_not_overwritten(models: Models, tmp_path: Path) -> None:
    recipe = models.recipe("a", "b")
    with pytest.raises(ConfigurationError, match="holds the model 'a' that is read from"):
        exported(models, recipe, models.path("a"))
    with pytest.raises(ConfigurationError, match="was not written by evomerge"):
        exported(models, recipe, models.path("full"))
    first = exported(models, recipe, tmp_path / "adapter")
    assert exported(models, models.recipe("a"), tmp_path / "adapter").rank < first.rank


def test_killed_while_writing_it_leaves_the_old_adapter(models: Models, tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    exported(models, models.recipe("a"), folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    recipe = models.recipe("a", "b")
    code = forked(lambda: exported(models, recipe, folder), "export.before_index")
    assert code == -9
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    exported(models, recipe, folder)
    assert len(list(tmp_path.iterdir())) == 1
    assert (folder / ADAPTER_MODEL).read_bytes() != before[ADAPTER_MODEL]


def test_progress_counts_the_tensors(models: Models, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    recipe = models.recipe("a")
    exported(models, recipe, tmp_path / "x", progress=lambda *told: seen.append(told))
    total = len(load_file(models.path("llama") / "model.safetensors"))
    assert [done for _, done, _ in seen] == list(range(1, total + 1))
    assert {(what, of) for what, _, of in seen} == {("finding low ranks", total)}


# --- from the command line, and from Python -------------------------------------------------------


def test_merge_writes_an_adapter_and_says_what_it_lost(
    models: Models, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    from evomerge.cli import app
    from evomerge.results.card import recipe_yaml

    recipe = models.recipe("a", "b", operator="ties", density=0.5)
    (tmp_path / "recipe.yaml").write_text(recipe_yaml(recipe))
    arguments = ["merge", str(tmp_path / "recipe.yaml"), "--out", str(tmp_path / "out")]
    app([*arguments, "--adapter", "--rank", "3"], standalone_mode=False)
    printed = capsys.readouterr().out
    card = (tmp_path / "out" / "README.md").read_text()
    for text in ("Relative Frobenius error", "cut to their largest singular values; rank 3."):
        assert text in printed
        assert text in card
    assert "--adapter --rank 3" in card
    with pytest.raises(ConfigurationError, match="add --adapter"):
        app([*arguments, "--rank", "3"], standalone_mode=False)


def test_a_search_over_an_adapter_and_a_full_expert(models: Models, tmp_path: Path) -> None:
    goal = load_file(models.path("full") / "model.safetensors")["model.layers.0.mlp.up_proj.weight"]
    tokens = torch.arange(12).view(1, 12)

    def fitness(model: Any) -> dict[str, Any]:
        weight = model.state_dict()["model.layers.0.mlp.up_proj.weight"]
        with torch.no_grad():
            level = float(model(tokens).logits.std())
        near = 1 / (1 + (weight - goal).square().mean(1).sqrt()) - 0.01 * level
        return {"near": near}

    def search(out: str, budget: int) -> evomerge.Run:
        return evomerge.search(
            models={"adapter": models.path("a"), "full": models.path("full")},
            base=models.path("llama"),
            fitness=fitness,
            searcher={"kind": "cma_es", "population": 4},
            budget=budget,
            pool={"workers": 0},
            out=tmp_path / out,
        )

    search("stopped", 4)
    run, straight = search("stopped", 8), search("straight", 8)
    assert run.ledger.digest() == straight.ledger.digest()
    candidate = run.candidate(6)
    assert candidate.recipe is not None
    weights = candidate.recipe.merge_for(0, "attention").parameters["weight"]
    assert isinstance(weights, dict)
    base = load_file(models.path("llama") / "model.safetensors")
    experts = {
        "adapter": merged_by_peft(models.path("llama"), models.path("a")),
        "full": load_file(models.path("full") / "model.safetensors"),
    }
    for name, tensor in run.merge(6).items():
        expected = base[name] + sum(w * (experts[e][name] - base[name]) for e, w in weights.items())
        torch.testing.assert_close(tensor, expected, atol=1e-6, rtol=1e-6)
    report = run.export_adapter(6, tmp_path / "adapter", rank=16)
    assert report.error < 1e-5
    found = merged_by_peft(models.path("llama"), report.folder)
    assert all((found[n] - t).abs().max() < 1e-5 for n, t in run.merge(6).items())
    from evomerge.cli import app

    arguments = ["--candidate", "6", "--adapter", "--rank", "16", "--out", str(tmp_path / "cli")]
    app(["export", str(tmp_path / "stopped"), *arguments], standalone_mode=False)
    by_hand = (tmp_path / "cli" / ADAPTER_MODEL).read_bytes()
    assert by_hand == (report.folder / ADAPTER_MODEL).read_bytes()


def test_merge_from_python(models: Models, tmp_path: Path) -> None:
    chosen = {"a": models.path("a"), "b": models.path("b")}
    merged = evomerge.merge(
        chosen, "task_arithmetic", base=models.path("llama"), out=tmp_path / "out", adapter=True
    )
    found = merged_by_peft(models.path("llama"), tmp_path / "out")
    assert all((found[name] - tensor).abs().max() < 2e-6 for name, tensor in merged.items())
