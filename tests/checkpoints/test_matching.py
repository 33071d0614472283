"""Weight matching. Oracles: transformers' and scikit-learn's own forward passes; brute force."""

from __future__ import annotations

import itertools
import shutil
import warnings
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from evomerge.checkpoints import matched
from evomerge.checkpoints.adapters import as_adapter
from evomerge.checkpoints.axes import Axes, Units, chain_axes
from evomerge.checkpoints.family import open_family
from evomerge.checkpoints.matching import Permutations, identity, match
from evomerge.checkpoints.open import Checkpoint, open_checkpoint
from evomerge.checkpoints.transformer_axes import FAMILIES
from evomerge.errors import ConfigurationError, ModelError
from evomerge.recipe import Merge, ModelSource, Recipe

TOLERANCE = 1e-4
QUICK = ("llama", "qwen2", "qwen3", "gpt2", "phi3", "olmo2", "opt", "nemotron")
OWN_NAMES = {  # of settings, where a family has others
    "gpt2": {"n_inner": 24},
    "opt": {"ffn_dim": 24, "word_embed_proj_dim": 16},
    "gpt_neo": {"intermediate_size": 24, "attention_types": [[["global", "local"], 1]]},
}
COMMON = {"intermediate_size": 24, "head_dim": 4, "num_key_value_heads": 2}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EVOMERGE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def tiny(kind: str, seed: int = 0) -> tuple[Any, Checkpoint]:
    """A random model of a family, every parameter something special, and its checkpoint."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(
        kind,
        vocab_size=40,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=32,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        **OWN_NAMES.get(kind, COMMON),
    )
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config).eval()
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.3)
    state = {name: tensor.detach().clone() for name, tensor in model.named_parameters()}
    named = {**config.to_dict(), "architectures": [type(model).__name__]}
    return model, Checkpoint(kind, state, config=named)


def shuffled(axes: Axes, seed: int = 0) -> Permutations:
    """A random order of all that may be permuted."""
    random = np.random.default_rng(seed)
    found: Permutations = {}
    for group in axes.groups:
        if isinstance(group, Units):
            found[group.space] = random.permutation(group.size)
            continue
        keys, queries, width = group.num_keys, group.num_queries, group.width
        still = np.arange(width)
        order = random.permutation(keys)
        inner_key = [still if group.rotary else random.permutation(width) for _ in order]
        inner_value = [random.permutation(width) for _ in order]
        heads = [key * queries + random.permutation(queries) for key in order]
        parts: dict[str, list[Any]] = {space: [] for space in group.sizes}
        for i, key in enumerate(order):
            parts[group.key].append(key * width + inner_key[i])
            parts[group.value].append(key * width + inner_value[i])
            for head in heads[i]:
                parts[group.query].append(head * width + inner_key[i])
                parts[group.output].append(head * width + inner_value[i])
        found |= {space: np.concatenate(part) for space, part in parts.items()}
    return found


def stored(checkpoint: Checkpoint) -> dict[str, Tensor]:
    return {name: checkpoint.tensor(name).clone() for name in checkpoint.names}


@pytest.mark.parametrize(
    "kind",
    [k if k in QUICK else pytest.param(k, marks=pytest.mark.slow) for k in FAMILIES],
)
def test_a_transformer_in_another_order_computes_the_same_and_is_found_again(kind: str) -> None:
    model, checkpoint = tiny(kind)
    axes = matched.axes_of(checkpoint)
    moved = matched.reordered(checkpoint, axes, shuffled(axes))
    ids = torch.arange(3, 23)[None]
    with torch.no_grad():
        before = model(ids).logits
        model.load_state_dict(stored(moved), strict=False)
        after = model(ids).logits
    assert float((before - after).abs().max()) < TOLERANCE
    assert float(before.abs().max()) > 100 * TOLERANCE
    changed = [n for n in checkpoint.names if not checkpoint.tensor(n).equal(moved.tensor(n))]
    assert len(changed) > 0.9 * len(checkpoint.names) - 2

    copy = Checkpoint("copy", stored(moved), config=checkpoint.config)
    found = match(copy, checkpoint, axes)
    assert found.before < 0.5 < 0.999 < found.after
    back = matched.reordered(copy, axes, found.permutations)
    for name in checkpoint.names:
        assert torch.equal(back.tensor(name), checkpoint.tensor(name)), name


def test_a_model_with_other_tokens_is_matched_by_all_else() -> None:
    _, checkpoint = tiny("llama")
    axes = matched.axes_of(checkpoint)
    state = stored(matched.reordered(checkpoint, axes, shuffled(axes)))
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        if name in state:
            state[name] = torch.cat([state[name], torch.zeros(4, 16)])
    larger = Checkpoint("m", state, config={**checkpoint.config, "vocab_size": 44})
    found, _ = matched.matched(larger, checkpoint, matched.Match(model="llama"))
    for name in checkpoint.names:
        rows = checkpoint.shape(name)[0]
        assert torch.equal(found.tensor(name)[:rows], checkpoint.tensor(name)), name


def test_an_adapter_is_not_matched() -> None:
    _, base = tiny("llama")
    with pytest.raises(ModelError, match="is an adapter, a change of its base"):
        matched.matched(as_adapter(base, base), base, matched.Match(model="llama"))


def test_unrelated_transformers_come_nearer_and_compute_the_same() -> None:
    model, checkpoint = tiny("llama", seed=1)
    _, target = tiny("llama", seed=2)
    found, note = matched.matched(checkpoint, target, matched.Match(model="llama"))
    result = match(checkpoint, target, matched.axes_of(checkpoint))
    assert result.after > result.before + 0.05
    assert f"{result.after:.3f} after" in note
    ids = torch.arange(3, 23)[None]
    with torch.no_grad():
        before = model(ids).logits
        model.load_state_dict(stored(found), strict=False)
        assert float((before - model(ids).logits).abs().max()) < TOLERANCE


def test_one_hidden_layer_gets_the_best_of_all_orders() -> None:
    """Brute force over all permutations of five units."""
    generator = torch.Generator().manual_seed(0)
    one, other = (
        {
            "fc1.weight": torch.randn(5, 3, generator=generator),
            "fc1.bias": torch.randn(5, generator=generator),
            "fc2.weight": torch.randn(2, 5, generator=generator),
            "fc2.bias": torch.randn(2, generator=generator),
        }
        for _ in range(2)
    )
    model, target = open_checkpoint(one, name="a"), open_checkpoint(other, name="b")
    found = match(model, target, chain_axes(model)).permutations["hidden 0"]

    def score(order: Any) -> float:
        index = list(order)
        first = (one["fc1.weight"][index] * other["fc1.weight"]).sum()
        second = (one["fc2.weight"][:, index] * other["fc2.weight"]).sum()
        return float(first + second + (one["fc1.bias"][index] * other["fc1.bias"]).sum())

    best = max(itertools.permutations(range(5)), key=score)
    assert tuple(found) == best


# --- plain networks -------------------------------------------------------------------------------


def digits() -> tuple[Any, ...]:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    data, labels = load_digits(return_X_y=True)
    parts: tuple[Any, ...] = tuple(
        train_test_split(data / 16, labels, test_size=0.4, random_state=0)
    )
    return parts


def trained(seed: int, data: Any, labels: Any) -> Any:
    from sklearn.neural_network import MLPClassifier

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return MLPClassifier((64, 48), max_iter=40, random_state=seed).fit(data, labels)


def state_of(network: Any) -> dict[str, Tensor]:
    parts = {"coefs": network.coefs_, "intercepts": network.intercepts_}
    return {
        f"{word}.{i}": torch.from_numpy(value.copy())
        for word, values in parts.items()
        for i, value in enumerate(values)
    }


def loss(network: Any, state: dict[str, Tensor], data: Any, labels: Any) -> float:
    """scikit-learn's own forward pass with other weights."""
    from sklearn.metrics import log_loss

    depth = len(network.coefs_)
    network.coefs_ = [state[f"coefs.{i}"].numpy() for i in range(depth)]
    network.intercepts_ = [state[f"intercepts.{i}"].numpy() for i in range(depth)]
    return float(log_loss(labels, network.predict_proba(data)))


def test_separately_trained_networks_merge_with_less_loss_after_matching() -> None:
    train, test, train_labels, test_labels = digits()
    one, other = (trained(seed, train, train_labels) for seed in (1, 2))
    states = {"base": state_of(one), "b": state_of(other)}
    alone = loss(other, states["b"], test, test_labels)

    def merged(matches: dict[str, str]) -> float:
        models = open_family(states, "base", matches=matches).checkpoints
        mean = {
            name: (models["base"].tensor(name) + models["b"].tensor(name)) / 2
            for name in states["base"]
        }
        assert abs(loss(other, stored(models["b"]), test, test_labels) - alone) < TOLERANCE
        return loss(other, mean, test, test_labels)

    before, after = merged({}), merged({"b": "base"})
    assert after < before - 0.2
    assert after < before / 2


def test_a_chain_with_norms_between_its_layers_computes_the_same() -> None:
    torch.manual_seed(0)
    layers = [nn.Linear(6, 9), nn.BatchNorm1d(9), nn.ReLU(), nn.Linear(9, 7, bias=False)]
    network = nn.Sequential(*layers, nn.LayerNorm(7), nn.ReLU(), nn.Linear(7, 3)).eval()
    for parameter in network.parameters():
        nn.init.normal_(parameter)
    nn.init.normal_(network[1].running_mean)
    checkpoint = open_checkpoint(network.state_dict(), name="a")
    axes = matched.axes_of(checkpoint)
    assert axes.tensors["1.running_var"] == (("hidden 0",),)
    data = torch.randn(5, 6)
    before = network(data)
    network.load_state_dict(stored(matched.reordered(checkpoint, axes, shuffled(axes))))
    torch.testing.assert_close(network(data), before, atol=TOLERANCE, rtol=0)


def test_given_axes_permute_what_no_shape_tells() -> None:
    """A residual network: both layers add to one stream."""
    generator = torch.Generator().manual_seed(3)
    shapes = {"embed": (5, 4), "a.weight": (6, 4), "b.weight": (4, 6), "out": (2, 4)}
    state = {n: torch.randn(shape, generator=generator) for n, shape in shapes.items()}
    axes = {
        "embed": (None, "stream"),
        "a.weight": ("hidden", "stream"),
        "b.weight": ("stream", "hidden"),
        "out": (None, "stream"),
    }

    def output(weights: dict[str, Tensor]) -> Tensor:
        stream = weights["embed"]
        stream = stream + torch.relu(stream @ weights["a.weight"].T) @ weights["b.weight"].T
        return stream @ weights["out"].T

    model = open_checkpoint(state, name="a")
    found = matched.axes_of(model, axes)
    moved = stored(matched.reordered(model, found, shuffled(found)))
    torch.testing.assert_close(output(moved), output(state))
    family = open_family(
        {"base": state, "b": moved}, "base", matches={"b": matched.Match(model="base", axes=axes)}
    )
    for name, tensor in state.items():
        assert torch.equal(family.checkpoints["b"].tensor(name), tensor)
    with pytest.raises(ModelError, match="takes 4 inputs, and 'embed' before it has 5 outputs"):
        chain_axes(model)


# --- what is refused, and what is kept ------------------------------------------------------------


def network(hidden: int = 4, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"0.weight": (hidden, 3), "0.bias": (hidden,), "1.weight": (2, hidden)}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def test_a_matching_is_found_once() -> None:
    sources = {"base": network(), "b": network(seed=1)}
    first = open_family(sources, "base", matches={"b": "base"})
    with mock.patch.object(matched, "match", side_effect=AssertionError):
        again = open_family(sources, "base", matches={"b": "base"})
    assert again.checkpoints["b"].sha256() == first.checkpoints["b"].sha256()
    assert first.checkpoints["b"].sha256() != open_checkpoint(sources["b"], name="b").sha256()
    assert again.notes == first.notes
    assert "hidden units moved" in first.notes[0]


@pytest.mark.parametrize("damage", ["empty", "halved", "not a permutation"])
def test_a_damaged_cache_costs_finding_it_again(damage: str, cache: Path) -> None:
    from safetensors.numpy import save_file

    sources = {"base": network(), "b": network(seed=1)}
    first = open_family(sources, "base", matches={"b": "base"}).checkpoints["b"].sha256()
    (path,) = cache.glob("matchings/*.safetensors")
    if damage == "not a permutation":
        told = {"matching": '{"after":1,"before":0}'}
        save_file({"hidden 0": np.zeros(4, np.int32)}, path, metadata=told)
    else:
        path.write_bytes(b"" if damage == "empty" else path.read_bytes()[:40])
    assert open_family(sources, "base", matches={"b": "base"}).checkpoints["b"].sha256() == first


@pytest.mark.parametrize(
    ("matches", "message"),
    [
        ({"b": "bse"}, "no model 'bse'.*did you mean 'base'"),
        ({"c": "base"}, "model c: match: no such model"),
        ({"b": "b"}, "matched to itself"),
        ({"b": "other", "other": "base"}, "'other' is matched itself.*match both to 'base'"),
        ({"b": "other", "other": "b"}, "'other' is matched itself.*match one of the two alone"),
    ],
)
def test_matches_that_name_the_wrong_model_are_refused(
    matches: dict[str, str], message: str
) -> None:
    sources = {"base": network(), "b": network(seed=1), "other": network(seed=2)}
    with pytest.raises(ConfigurationError, match=message):
        open_family(sources, "base", matches=matches)


def test_networks_of_other_sizes_are_refused() -> None:
    with pytest.raises(ModelError, match=r"0\.bias.*has shape \[5\], and \[4\] in base"):
        open_family({"base": network(), "b": network(5)}, "base", matches={"b": "base"})


def test_an_unknown_architecture_is_refused_by_name() -> None:
    _, checkpoint = tiny("llama")
    unknown = Checkpoint(
        "m", stored(checkpoint), config={**checkpoint.config, "model_type": "lama"}
    )
    with pytest.raises(ModelError, match=r"'lama'.*did you mean 'llama'"):
        matched.axes_of(unknown)
    extra = stored(checkpoint) | {"model.layers.1.mlp.router.weight": torch.zeros(3, 16)}
    with pytest.raises(ModelError, match=r"model\.layers\.1\.mlp\.router\.weight.*is not known"):
        matched.axes_of(Checkpoint("m", extra, config=checkpoint.config))


def test_axes_that_do_not_fit_are_refused() -> None:
    model = open_checkpoint(network(), name="a")
    wrong = {"0.weight": ("hidden",), "1.weight": (None, "input"), "0.bia": (None,)}
    with pytest.raises(ModelError) as caught:
        matched.axes_of(model, wrong)
    text = str(caught.value)
    assert "axes.0.weight: expected 2 names" in text
    assert "did you mean '0.bias'" in text
    with pytest.raises(ModelError, match="'hidden' is 3 long here, and 4 elsewhere"):
        matched.axes_of(model, {"0.bias": ("hidden",), "0.weight": (None, "hidden")})


def test_recipes_without_a_match_keep_their_fingerprints() -> None:
    def recipe(**settings: Any) -> Recipe:
        models = {"base": ModelSource(path="x"), "a": ModelSource(path="y", **settings)}
        return Recipe(base="base", models=models, default=Merge(operator="linear"))

    plain = recipe()
    assert plain.fingerprint == recipe(match=None).fingerprint
    assert "match" not in plain.to_json()
    assert recipe(match="base").fingerprint != plain.fingerprint
    in_full = recipe(match={"model": "base"})
    assert in_full == recipe(match="base")
    assert Recipe.from_json(in_full.to_json()) == in_full
    with pytest.raises(ValueError, match="unknown model"):
        recipe(match="bse")


def test_nothing_moves_by_the_identity() -> None:
    _, checkpoint = tiny("llama")
    axes = matched.axes_of(checkpoint)
    same = matched.reordered(checkpoint, axes, identity(axes))
    assert not any(same.is_made(name) for name in same.names)


# --- where it is used -----------------------------------------------------------------------------


def markov_chains(generator: torch.Generator, length: int = 12) -> Tensor:
    """Sequences of a language of 16 tokens, of which each tells which come next."""
    likely = torch.randn(16, 16, generator=torch.Generator().manual_seed(5))
    steps = [torch.randint(0, 16, (32,), generator=generator)]
    for _ in range(length):
        row = torch.softmax(3 * likely[steps[-1]], 1)
        steps.append(torch.multinomial(row, 1, generator=generator)[:, 0])
    return torch.stack(steps, 1)


def trained_llama(seed: int) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=16,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), 4e-3)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(100):
        tokens = markov_chains(generator)
        optimizer.zero_grad()
        model(tokens, labels=tokens).loss.backward()
        optimizer.step()
    return model.eval()


def test_separately_trained_transformers_merge_with_less_loss_after_matching() -> None:
    models = [trained_llama(seed) for seed in (1, 2)]
    model = models[0]
    config = {**model.config.to_dict(), "architectures": ["LlamaForCausalLM"]}
    one, other = (
        Checkpoint(name, {n: t.detach().clone() for n, t in m.state_dict().items()}, config=config)
        for name, m in zip(("base", "b"), models, strict=True)
    )
    tokens = markov_chains(torch.Generator().manual_seed(99))

    def loss_of(state: dict[str, Tensor]) -> float:
        model.load_state_dict(state)
        with torch.no_grad():
            return float(model(tokens, labels=tokens).loss)

    def mean(second: Checkpoint) -> float:
        return loss_of({n: (one.tensor(n) + second.tensor(n)) / 2 for n in one.names})

    found, _ = matched.matched(other, one, matched.Match(model="base"))
    alone = loss_of(stored(other))
    assert abs(loss_of(stored(found)) - alone) < TOLERANCE
    before, after = mean(other) - alone, mean(found) - alone
    assert before > 0.1
    assert after < before / 2


AXES = {f"layers.{i}.weight": ["units"] for i in (0, 1)} | {"head.weight": ["units"]}


def test_a_search_over_a_model_with_and_without_matching_goes_on_as_if_uninterrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    """Two entries of one model: the weights say how much of each is used."""
    from toys import Toy, outcome_of

    from evomerge.experiment import run as runs
    from evomerge.experiment.wire import wire
    from evomerge.pools.worker import Worker

    monkeypatch.setattr(runs, "write_pictures", lambda *_: None)
    to = {"model": "base", "axes": AXES}
    experts = {"left": {"path": "memory:left", "match": to}, "right": "memory:right"}
    toy = Toy("random", keys={"experts": experts})
    assert toy.config().models()["left"] == "memory:left"
    whole = outcome_of(toy.run(tmp_path / "whole", budget=8))
    toy.run(tmp_path / "parts", budget=4)
    frozen = (tmp_path / "parts" / "experiment.yaml").read_text()
    assert "matches:" in frozen
    assert outcome_of(toy.run(tmp_path / "parts", budget=8))["digest"] == whole["digest"]
    here, plain = wire(toy.config(), toy.given()), wire(Toy().config(), toy.given())
    assert "matches" not in here.identity
    assert here.identity != plain.identity
    assert any("hidden units moved" in text for text in here.warnings)
    # Workers are sent what was found: on another machine a tie might be decided otherwise.
    with mock.patch.object(matched, "match", side_effect=AssertionError):
        shutil.rmtree(cache / "matchings")
        worker = Worker(here.worker, "w")
    assert worker.model is not None


def test_an_experiments_match_is_checked_before_a_model_is_read(tmp_path: Path) -> None:
    from toys import Toy

    def refused(entry: Any) -> str:
        keys = {"experts": {"left": entry, "right": "memory:right"}}
        with pytest.raises(ConfigurationError) as caught:
            Toy(keys=keys).config()
        return str(caught.value)

    assert "experts.left.match: no model 'bse'" in refused({"path": "x", "match": "bse"})
    assert "did you mean 'match'" in refused({"path": "x", "mach": "base"})
    assert "experts.left: has no `path`" in refused({"match": "base"})


def test_merge_takes_matches() -> None:
    import evomerge

    states = {"base": network(), "b": network(seed=1)}
    merged = evomerge.merge(
        {"b": states["b"]}, "linear", base=states["base"], matches={"b": "base"}
    )
    family = open_family(states, "base", matches={"b": "base"}).checkpoints
    torch.testing.assert_close(merged, stored(family["b"]))
    with pytest.raises(ConfigurationError, match=r"matches\.c: no such model"):
        evomerge.merge({"b": states["b"]}, "linear", base=states["base"], matches={"c": "base"})
