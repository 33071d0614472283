"""Names and heads that differ; the oracles are torch's and transformers' own wrappers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from evomerge import merge
from evomerge.checkpoints.family import Family, open_family
from evomerge.checkpoints.prefixes import match_names
from evomerge.checkpoints.preflight import preflight
from evomerge.errors import ModelError

transformers = pytest.importorskip("transformers")

LLAMA = {
    "vocab_size": 12,
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
GPT2 = {"vocab_size": 12, "n_embd": 8, "n_layer": 2, "n_head": 2, "n_positions": 8}


def network(seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(3, 4), nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)))


def partly_compiled(model: nn.Module) -> nn.Module:
    model[1] = torch.compile(model[1])  # the wrapper then stands inside the names
    return model


WRAPPERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "DataParallel": nn.DataParallel,
    "compiled": torch.compile,  # type: ignore[dict-item]
    "compiled and parallel": lambda model: torch.compile(nn.DataParallel(model)),
    "parallel and compiled": lambda model: nn.DataParallel(torch.compile(model)),
    "a part compiled": partly_compiled,
    "one more name": lambda model: nn.ModuleDict({"model": model}),
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("who", ["expert", "base"])
def test_wrapped_models_merge_as_plain_ones_do(wrapper: str, who: str) -> None:
    plain = {"base": network(0).state_dict(), "expert": network(1).state_dict()}
    wrapped = plain | {who: WRAPPERS[wrapper](network(who == "expert")).state_dict()}
    assert set(wrapped[who]) != set(plain[who])
    family = open_family(wrapped, "base")
    assert preflight(family.checkpoints, "base") == []
    assert len(family.notes) == 1
    assert "6 tensors" in family.notes[0] or wrapper == "a part compiled"
    expected, merged = (
        merge({"x": s["expert"]}, "linear", base=s["base"]) for s in (plain, wrapped)
    )
    assert set(merged) == set(wrapped["base"])
    for one, other in zip(sorted(expected), sorted(merged), strict=True):
        assert torch.equal(expected[one], merged[other])


def saved(folder: Path, model_class: str, config_class: str, seed: int, **settings: object) -> Path:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = getattr(transformers, config_class)(**settings)
        getattr(transformers, model_class)(config).save_pretrained(folder)
    return folder


def opened(base: Path, expert: Path) -> Family:
    family = open_family({"base": base, "x": expert}, "base")
    preflight(family.checkpoints, "base")
    return family


def test_a_headless_expert_takes_the_bases_head(tmp_path: Path) -> None:
    base = saved(tmp_path / "b", "LlamaForCausalLM", "LlamaConfig", 0, **LLAMA)
    expert = saved(tmp_path / "x", "LlamaModel", "LlamaConfig", 1, **LLAMA)
    family = opened(base, expert)
    body = len(family.checkpoints["base"].names) - 1
    assert family.notes == (
        f"x: {body} tensors are the base's by their names with 'model.' in front",
        "x: has no 'lm_head.weight': the base's own takes its place",
    )
    loaded = transformers.LlamaModel.from_pretrained(expert).state_dict()
    seen = family.checkpoints["x"]
    for name in seen.names:
        original = (
            family.checkpoints["base"].tensor(name)
            if name == "lm_head.weight"
            else loaded[name.removeprefix("model.")]
        )
        assert torch.equal(seen.tensor(name), original)
    merged = merge({"x": expert}, "task_arithmetic", base=base, parameters={"weight": 0.5})
    head = family.checkpoints["base"].tensor("lm_head.weight")
    assert torch.equal(merged["lm_head.weight"], head)


def test_a_head_that_the_base_lacks_is_left_out(tmp_path: Path) -> None:
    base = saved(tmp_path / "b", "GPT2Model", "GPT2Config", 0, **GPT2)
    expert = saved(tmp_path / "x", "GPT2ForSequenceClassification", "GPT2Config", 1, **GPT2)
    family = opened(base, expert)
    assert "without 'transformer.'" in family.notes[0]
    assert family.notes[1] == "x: 'score.weight', which the base does not store, is left out"
    assert family.checkpoints["x"].names == family.checkpoints["base"].names


def test_both_have_a_head_and_another(tmp_path: Path) -> None:
    base = saved(tmp_path / "b", "LlamaForCausalLM", "LlamaConfig", 0, **LLAMA)
    expert = saved(tmp_path / "x", "LlamaForSequenceClassification", "LlamaConfig", 1, **LLAMA)
    family = opened(base, expert)
    assert [note.partition(":")[2][:20] for note in family.notes] == [
        " has no 'lm_head.wei",
        " 'score.weight', whi",
    ]


def test_a_tied_head_that_is_stored_is_left_out(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    tied = LLAMA | {"tie_word_embeddings": True}
    base = saved(tmp_path / "b", "LlamaForCausalLM", "LlamaConfig", 0, **tied)
    expert = saved(tmp_path / "x", "LlamaForCausalLM", "LlamaConfig", 1, **tied)
    state = load_file(expert / "model.safetensors")
    state["lm_head.weight"] = state["model.embed_tokens.weight"].clone()
    save_file(state, expert / "model.safetensors", metadata={"format": "pt"})
    assert opened(base, expert).notes == (
        "x: 'lm_head.weight', which the base does not store, is left out",
    )


def test_tied_against_untied_is_refused_and_named(tmp_path: Path) -> None:
    tied = LLAMA | {"tie_word_embeddings": True}
    one = saved(tmp_path / "a", "LlamaForCausalLM", "LlamaConfig", 0, **tied)
    other = saved(tmp_path / "b", "LlamaForCausalLM", "LlamaConfig", 1, **LLAMA)
    with pytest.raises(ModelError, match=r"lm_head.*missing") as caught:
        opened(other, one)
    assert "tied to the embedding, in the base it is not" in str(caught.value)
    with pytest.raises(ModelError, match=r"lm_head.*extra"):
        opened(one, other)


def test_what_is_no_head_stays_an_error(tmp_path: Path) -> None:
    base, expert = network(0).state_dict(), network(1).state_dict()
    del expert["1.0.bias"]
    family = open_family({"base": base, "x": expert}, "base")
    assert family.notes == ()
    with pytest.raises(ModelError, match=r"1\.0\.bias.*missing"):
        preflight(family.checkpoints, "base")


@pytest.mark.parametrize(
    ("mine", "theirs", "expected"),
    [
        (["a.w", "b.w"], ["a.w", "b.w"], {}),
        (["m.a.w", "m.b.w"], ["a.w", "b.w"], {"a.w": "m.a.w", "b.w": "m.b.w"}),
        (["a.w", "b.w", "h.w"], ["m.a.w", "m.b.w", "h.w"], {"m.a.w": "a.w", "m.b.w": "b.w"}),
        # two towers that fit equally well: nobody can tell which is meant
        (["text.a.w", "image.a.w"], ["a.w"], {}),
        # one chance hit among many is no wrapper
        (["x.norm.w", "q.0", "q.1", "q.2"], ["norm.w", "l.0", "l.1", "l.2"], {}),
        # a wrapper around everything, and another around the body
        (
            ["module.body.l.0", "module.body.l.1", "module.head"],
            ["l.0", "l.1", "head"],
            {"l.0": "module.body.l.0", "l.1": "module.body.l.1", "head": "module.head"},
        ),
        # one short name for two: left alone
        (["_orig_mod.w", "w"], ["w", "v"], {}),
    ],
    ids=str,
)
def test_names(mine: list[str], theirs: list[str], expected: dict[str, str]) -> None:
    assert dict(match_names(mine, theirs).names) == expected


def test_the_checksum_tells_the_matched_names() -> None:
    base, expert = network(0).state_dict(), network(1).state_dict()
    wrapped = nn.DataParallel(network(1)).state_dict()
    found = [
        open_family({"base": base, "x": state}, "base").checkpoints["x"].sha256()
        for state in (expert, wrapped, wrapped)
    ]
    assert found[1] == found[2] != found[0]


def test_a_name_of_a_million_dots_costs_nothing() -> None:
    assert dict(match_names(["." * 1_000_000], ["w"]).names) == {}


def test_a_deeper_models_own_layers_have_the_prefix_too() -> None:
    base = [f"model.layers.{i}.w" for i in range(3)] + ["model.norm.weight", "lm_head.weight"]
    bare = [f"layers.{i}.w" for i in range(5)] + ["norm.weight", "score.weight"]
    matched = match_names(bare, base).names
    assert {f"model.layers.{i}.w": f"layers.{i}.w" for i in range(5)}.items() <= matched.items()
    assert "score.weight" not in matched.values()
    back = match_names(base, [*bare[:3], "norm.weight"]).names
    assert back["layers.2.w"] == "model.layers.2.w"
