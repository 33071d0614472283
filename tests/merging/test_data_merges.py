"""Merges that look at data: against FusionBench, least squares and formulas written down again."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch
from calibrated import family, ids_of, inputs_of, module_in, recipe_of, texts
from calibrated import merger_of as calibrated_merger
from safetensors import safe_open
from scaled_models import opened_family
from tiny_states import merger_of as stand_in_merger
from tiny_states import recipe_of as recipe_for

from evomerge.checkpoints.anatomy import anatomy_of
from evomerge.checkpoints.open import open_checkpoint
from evomerge.errors import CandidateError, ConfigurationError
from evomerge.merging import OPERATORS
from evomerge.merging.calibration import Calibration, Collected
from evomerge.merging.materialise import Merger
from evomerge.merging.operators.regmean import regression

GOLDEN = Path(__file__).parent / "golden" / "fusionbench_data.safetensors"


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVOMERGE_CACHE", str(tmp_path / "cache"))


class Given:
    """Statistics that are known."""

    digest = "given"

    def __init__(self, known):
        self.known = known  # kind -> model -> tensor's name -> value

    def of(self, kind, model):
        return self.known[kind.partition("_")[0]][model]

    def norm(self, kind, model):
        return sum(float(t.double().norm()) ** 2 for t in self.of(kind, model).values()) ** 0.5


def merged(states, known, operator, **parameters):
    checkpoints = {name: open_checkpoint(state, name=name) for name, state in states.items()}
    merger = Merger(checkpoints, anatomy_of(checkpoints["base"]), "base", statistics=Given(known))
    return dict(merger.tensors(recipe_of(states, operator, **parameters)))


def golden():
    with safe_open(GOLDEN, "pt") as file:
        found = defaultdict(lambda: defaultdict(dict))
        for name in file.keys():  # noqa: SIM118
            kind, owner, tensor = name.split("/")
            found[kind][owner][tensor] = file.get_tensor(name)
        return json.loads(file.metadata()["cases"]), found


@pytest.mark.parametrize("case", golden()[0])
def test_fusionbench_computes_the_same(case):
    cases, found = golden()
    operator, parameters = cases[case]
    states = {"base": found["model"]["a"], **found["model"]}
    ours = merged(states, found, operator, **parameters)
    for name, value in found["out"][case].items():
        torch.testing.assert_close(ours[name], value, atol=2e-6, rtol=2e-5)


def test_regmean_is_the_least_squares_solution(tmp_path):
    """sum_k |X_k W_k' - X_k W'|^2, with what each expert's layers have read, tokens counted."""
    models = family(tmp_path, ["base", "a", "b"])
    read = {name: texts(40, seed=i) for i, name in enumerate("ab")}
    merger = calibrated_merger(models, Calibration(of=read))
    ours = dict(merger.tensors(recipe_of(models, "regmean", alpha=1.0)))
    seen = {
        name: inputs_of(module_in(tmp_path / name), [ids_of(text) for text in own])
        for name, own in read.items()
    }
    for layer, x in seen["a"].items():
        rows = [x, seen["b"][layer]]
        weights = [models[m].tensor(f"{layer}.weight").double() for m in "ab"]
        scaled = [x / len(x) ** 0.5 for x in rows]  # G is a mean over tokens
        left = torch.cat(scaled).numpy()
        right = torch.cat([x @ w.T for x, w in zip(scaled, weights, strict=True)]).numpy()
        solution, *_ = np.linalg.lstsq(left, right, rcond=None)
        value = ours[f"{layer}.weight"].double().numpy()
        # Float32 statistics: the solution is as good, and near where it is well determined.
        residual = np.linalg.norm(left @ value.T - right)
        best = np.linalg.norm(left @ solution - right)
        assert residual <= best * (1 + 1e-4) + 1e-5
        np.testing.assert_allclose(left @ value.T, left @ solution, atol=2e-3)
    for name in ("model.norm.weight", "model.embed_tokens.weight"):
        mean = (models["a"].tensor(name) + models["b"].tensor(name)) / 2
        torch.testing.assert_close(ours[name], mean)


def test_regmean_with_fewer_tokens_than_columns_keeps_the_mean_where_no_text_has_been():
    draw = torch.Generator().manual_seed(0)
    weights = [torch.randn(6, 8, generator=draw) for _ in range(2)]
    rows = [torch.randn(3, 8, generator=draw) for _ in range(2)]
    rows[0][:, 5] = rows[1][:, 5] = 0.0  # a dead column
    grams = [x.T @ x / len(x) for x in rows]
    made = regression(weights, grams)
    mean = (weights[0] + weights[1]) / 2
    for alpha in (0.0, 0.5, 0.999, 1.0):
        value = made.merged(alpha)
        assert torch.isfinite(value).all()
        assert value.abs().max() < 20
        torch.testing.assert_close(value[:, 5], mean[:, 5])
    # At 1 what the texts have reached is solved: here both experts' outputs can be met.
    exact = made.merged(1.0)
    for x, weight in zip(rows, weights, strict=True):
        torch.testing.assert_close(x @ exact.T, x @ weight.T, atol=1e-3, rtol=1e-3)
    unseen = torch.linalg.svd(torch.cat(rows), full_matrices=True).Vh[6:]
    size = sum(grams).diagonal()  # columns are compared in units of their size
    assert (((exact - mean) * size) @ unseen.T).abs().max() < 1e-4


def test_regmean_of_equal_grams_is_the_mean_and_of_equal_experts_the_expert():
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(20, 5, generator=draw)
    gram, weights = x.T @ x, [torch.randn(4, 5, generator=draw) for _ in range(3)]
    for alpha in (0.0, 0.7, 1.0):
        value = regression(weights, [gram] * 3).merged(alpha)
        torch.testing.assert_close(value, torch.stack(weights).mean(0), atol=1e-5, rtol=1e-5)
    grams = [gram, torch.eye(5), 3 * gram]
    assert torch.equal(regression([weights[0]] * 3, grams).merged(1.0), weights[0])


def test_fisher_is_the_formula_with_what_was_collected(tmp_path):
    models = family(tmp_path, ["base", "a", "b"])
    calibration = Calibration(texts=texts(5))
    merger = calibrated_merger(models, calibration)
    weights = {"a": 0.3, "b": 2.0}
    ours = dict(merger.tensors(recipe_of(models, "fisher", weight=weights, labels="data")))
    collected = Collected(calibration, models, "base")
    fishers = {m: collected.of("fisher_data", m) for m in weights}
    for name, value in ours.items():
        parts = [(weights[m] * (fishers[m][name].double() + 1e-6), m) for m in weights]
        above = sum(share * models[m].tensor(name).double() for share, m in parts)
        expected = above / sum(share for share, _ in parts)
        torch.testing.assert_close(value.double(), expected, atol=1e-6, rtol=1e-5)
        assert not torch.allclose(value, models["a"].tensor(name), atol=1e-3)


def test_fisher_refuses_weights_that_are_all_0():
    states = {name: {"x.weight": torch.ones(2, 2)} for name in ("base", "a", "b")}
    with pytest.raises(CandidateError, match="all weights are 0"):
        dict(stand_in_merger(states).tensors(recipe_for(states, "fisher", weight=0.0)))


@pytest.mark.parametrize("operator", ["ties", "regmean", "linear"])
def test_aim_holds_back_columns_behind_any_operator(tmp_path, operator):
    models = family(tmp_path, ["base", "a", "b"])
    read = texts(30)
    merger = calibrated_merger(models, Calibration(texts=read))
    plain = dict(merger.tensors(recipe_of(models, operator)))
    held = dict(merger.tensors(recipe_of(models, f"{operator} | aim", aim_omega=0.3)))
    same = dict(merger.tensors(recipe_of(models, f"{operator} | aim", aim_omega=1.0)))
    seen = inputs_of(module_in(tmp_path / "base"), [ids_of(text) for text in read])
    linear = {f"{layer}.weight": x.abs().mean(0).float() for layer, x in seen.items()}
    assert len(linear) > 7
    for name, value in plain.items():
        assert torch.equal(same[name], value)
        base = models["base"].tensor(name)
        expected = value
        if name in linear:
            factor = 1 - (1 - 0.3) * linear[name] / linear[name].max()
            expected = base + (value - base) * factor
        torch.testing.assert_close(held[name], expected, atol=1e-5, rtol=1e-5)


def test_rearranged_layers_bring_their_own_statistics(tmp_path):
    """A slot that is made of another layer takes that layer's, of each source its own."""
    models = family(tmp_path, ["base", "a", "b"])
    calibration = Calibration(texts=texts(6))
    merger = calibrated_merger(models, calibration)
    recipe = recipe_of(models, "fisher")
    slots = [{"layer": 0, "layers": {"b": 1}}, {"layer": 0}]
    other = type(recipe).model_validate({**recipe.model_dump(), "slots": slots})
    found = dict(merger.tensors(other))
    collected = Collected(calibration, models, "base")
    fishers = {m: collected.of("fisher_sampled", m) for m in "ab"}
    for slot, of_b in ((0, 1), (1, 0)):
        name = "model.layers.{}.mlp.up_proj.weight"
        used = {"a": name.format(0), "b": name.format(of_b)}
        parts = [(fishers[m][n].double() + 1e-6, models[m].tensor(n)) for m, n in used.items()]
        expected = sum(f * x for f, x in parts) / sum(f for f, _ in parts)
        torch.testing.assert_close(
            found[name.format(slot)].double(), expected, rtol=1e-5, atol=1e-6
        )


def solved(weights, grams, alpha):
    """The formula as it stands in the paper, in float64."""
    grams = [alpha * g + (1 - alpha) * np.diag(np.diag(g)) for g in grams]
    right = sum(g @ w.T for g, w in zip(grams, weights, strict=True))
    return np.linalg.solve(sum(grams), right).T


def regmean_plusplus_by_hand(tmp_path, models, read, alpha):
    """Whole models, merged up to a layer, with the expert's own layer there, on its token ids."""
    states = {m: {n: models[m].tensor(n).double() for n in models[m].names} for m in models}
    merged = {n: (states["a"][n] + states["b"][n]) / 2 for n in states["a"]}
    anatomy = anatomy_of(models["base"])
    for layer in range(anatomy.num_layers):
        inside = {n for n, place in anatomy.places.items() if place.layer == layer}
        grams = {}
        for m in "ab":
            module = module_in(tmp_path / m)
            own = {n: states[m][n] if n in inside else merged[n] for n in merged}
            unknown = module.load_state_dict(own, strict=False).unexpected_keys
            assert set(unknown) <= {"embed_out.weight"}  # a head, which no layer reads
            seen = inputs_of(module, read[m])
            grams[m] = {n: (x.T @ x / len(x)).numpy() for n, x in seen.items()}
        for name in grams["a"]:
            if f"{name}.weight" in inside:
                weights = [states[m][f"{name}.weight"].numpy() for m in "ab"]
                found = solved(weights, [grams[m][name] for m in "ab"], alpha)
                merged[f"{name}.weight"] = torch.from_numpy(found)
    return merged


def test_regmean_plusplus_is_layer_after_layer_what_merged_prefixes_make(tmp_path):
    models = family(tmp_path, ["base", "a", "b"])
    read = {name: texts(30, seed=i) for i, name in enumerate("ab")}
    merger = calibrated_merger(models, Calibration(of=read))
    ours = dict(merger.tensors(recipe_of(models, "regmean_plusplus", alpha=0.8)))
    ids = {name: [ids_of(text) for text in own] for name, own in read.items()}
    theirs = regmean_plusplus_by_hand(tmp_path, models, ids, 0.8)
    plain = dict(merger.tensors(recipe_of(models, "regmean", alpha=0.8)))
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name].double(), value, atol=2e-4, rtol=2e-3)
    name = "model.layers.1.mlp.down_proj.weight"
    assert not torch.allclose(ours[name], plain[name], atol=1e-2)


@pytest.mark.parametrize("kind", ["gemma2", "qwen3", "falcon", "opt", "gpt_neox"])
def test_regmean_plusplus_runs_the_layers_of_other_kinds_one_by_one(tmp_path, kind, monkeypatch):
    """Masks and positions come beside the hidden states, and need not be those of all layers."""
    models = opened_family(tmp_path, kind, ["base", "a", "b"])
    draw = torch.Generator().manual_seed(0)
    read = {
        m: [torch.randint(1, 32, (5 + i % 4,), generator=draw) for i in range(16)] for m in "ab"
    }
    monkeypatch.setattr(Collected, "tokens", lambda _, model: [ids.tolist() for ids in read[model]])
    merger = calibrated_merger(models, Calibration(texts=("none",)))
    ours = dict(merger.tensors(recipe_of(models, "regmean_plusplus", alpha=0.5)))
    theirs = regmean_plusplus_by_hand(tmp_path, models, read, 0.5)
    assert sum("layers" in n or ".h." in n for n in theirs) > 8
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name].double(), value, atol=2e-4, rtol=5e-3)


def test_the_first_layer_of_regmean_plusplus_is_regmeans_where_embeddings_are_the_same(tmp_path):
    models = family(tmp_path, ["base", "a"])
    module = module_in(tmp_path / "a").float()
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "embed" not in name:
                parameter.mul_(1.3)
    module.save_pretrained(tmp_path / "b")
    models["b"] = open_checkpoint(tmp_path / "b", name="b")
    merger = calibrated_merger(models, Calibration(texts=texts(30)))
    in_turn, plain = (
        dict(merger.tensors(recipe_of(models, operator, alpha=0.9)))
        for operator in ("regmean_plusplus", "regmean")
    )
    for name, value in plain.items():
        if name.startswith("model.layers.0."):
            torch.testing.assert_close(in_turn[name], value, atol=1e-4, rtol=1e-4)
    name = "model.layers.1.mlp.up_proj.weight"
    assert not torch.allclose(in_turn[name], plain[name], atol=1e-3)


def test_regmean_plusplus_is_refused_where_it_is_not_defined(tmp_path):
    models = family(tmp_path, ["base", "a", "b"])
    merger = calibrated_merger(models, Calibration(texts=texts(4)))
    recipe = recipe_of(models, "regmean_plusplus")
    for change in (
        {"slots": [{"layer": 1}, {"layer": 0}]},
        {"outside": {"head": {"operator": "linear"}}},
        {"slots": [{"layer": 0}, {"layer": 1, "merges": {"mlp": {"parameters": {"alpha": 0.1}}}}]},
    ):
        other = type(recipe).model_validate({**recipe.model_dump(), **change})
        with pytest.raises(ConfigurationError, match="regmean_plusplus merges layer after layer"):
            merger.plan(other)
    slots = [{"layer": 0}, {"layer": 1, "branch_scale": 0.5}]
    merger.plan(type(recipe).model_validate({**recipe.model_dump(), "slots": slots}))


@pytest.mark.parametrize("operator", ["fisher", "regmean", "regmean_plusplus", "ties | aim"])
def test_without_texts_it_is_said_what_to_write(operator):
    states = {name: {"x.weight": torch.ones(2, 2)} for name in ("base", "a")}
    checkpoints = {name: open_checkpoint(state, name=name) for name, state in states.items()}
    merger = Merger(checkpoints, anatomy_of(checkpoints["base"]), "base")
    with pytest.raises(ConfigurationError, match=r"calibration: .*looks at what models do"):
        dict(merger.tensors(recipe_of(states, operator)))


def test_operators_say_what_they_collect():
    values = {"labels": "data", "alpha": 0.9, "aim_omega": 0.4}
    assert OPERATORS["fisher"].collects(values) == (("fisher_data", "sources"),)
    assert OPERATORS["regmean"].collects(values) == (("gram", "sources"),)
    assert OPERATORS["ties | aim"].collects(values) == (("mean", "base"),)
    both = OPERATORS["regmean | aim | lines"]
    assert both.collects(values) == (("gram", "sources"), ("mean", "base"))
    assert (both.needs, OPERATORS["ties"].collects({})) == ("activations", ())
