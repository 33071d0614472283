from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from adapter_folders import lora
from token_models import CLASSES, KINDS, TABLES, added, row, word_level, write_folder
from transformers import (
    AutoTokenizer,
    BertTokenizer,
    GPT2Tokenizer,
    LlamaTokenizer,
    T5Tokenizer,
)

import evomerge
from evomerge.checkpoints.family import open_family
from evomerge.errors import ConfigurationError
from evomerge.experiment.recipes import open_recipe_models, read_recipe
from evomerge.merging.resident import Resident
from evomerge.recipe import Merge, Recipe
from evomerge.results.export import export_model, merged_tensors

BASE = {"<unk>": 0, "<s>": 1, "</s>": 2, "a": 3, "b": 4}
CHAT = {"<unk>": 0, "<s>": 3, "</s>": 1, "b": 2, "a": 4, "<|im|>": 5, "new": 6}
TEMPLATE = "{% for m in messages %}<|im|> {{ m['content'] }}{% endfor %}"


def special(ids: dict[str, int]) -> dict[str, Any]:
    return {"bos_token_id": ids["<s>"], "eos_token_id": ids["</s>"], "pad_token_id": ids["</s>"]}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def paths(tmp_path: Path, kind: str) -> dict[str, Path]:
    """A base with padding rows, and an expert that learned to chat, its ids in other places."""
    marks = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    marks["tokenizer_class"] = "PreTrainedTokenizerFast"
    tokenizer = word_level(CHAT, [added(5, "<|im|>", special=True)])
    ends = {"eos_token_id": [CHAT["<|im|>"], CHAT["</s>"]]}
    return {
        "base": write_folder(
            tmp_path / "base",
            BASE,
            kind=kind,
            num_rows=6,
            files={
                "tokenizer_config.json": marks,
                "generation_config.json": {**special(BASE), "temperature": 0.5},
                "vocab.txt": "old\n",
            },
            **special(BASE),
        ),
        "chat": write_folder(
            tmp_path / "chat",
            CHAT,
            kind=kind,
            seed=1,
            tokenizer=tokenizer,
            files={
                "tokenizer_config.json": marks,
                "generation_config.json": {**special(CHAT), **ends},
                "chat_template.jinja": TEMPLATE,
            },
            **{**special(CHAT), **ends, "pad_token_id": None},
        ),
    }


def recipe_of(paths: dict[str, Path], tokenizer: str) -> Recipe:
    models = {name: str(path) for name, path in paths.items()}
    default = Merge(operator="task_arithmetic", parameters={"weight": 0.5})
    return Recipe(base="base", models=models, default=default, tokenizer=tokenizer)


def exported(paths: dict[str, Path], tokenizer: str, out: Path) -> tuple[Any, Any, Resident]:
    """The module and tokenizer that plain transformers load, and what a worker measured."""
    recipe = recipe_of(paths, tokenizer)
    checkpoints = open_recipe_models(recipe)
    resident = Resident.open(checkpoints, "base")
    resident.write(recipe)
    export_model(recipe, checkpoints, out)
    kind = json.loads((out / "config.json").read_text())["model_type"]
    module, loading = CLASSES[kind].from_pretrained(out, output_loading_info=True)
    assert not any(loading.values()), loading
    return module.eval(), AutoTokenizer.from_pretrained(out), resident


def logits(module: Any, tokens: list[int]) -> torch.Tensor:
    given = torch.tensor([tokens])
    extra = {"decoder_input_ids": given} if module.config.model_type == "t5" else {}
    with torch.no_grad():
        found: torch.Tensor = module(given, **extra).logits
    return found


def test_a_union_loads_in_plain_transformers(paths, tmp_path: Path, kind: str) -> None:
    module, tokenizer, resident = exported(paths, "union", tmp_path / "out")
    vocabulary = tokenizer.get_vocab()
    assert {token: vocabulary[token] for token in BASE} == BASE
    assert set(vocabulary) == set(BASE) | set(CHAT)
    tokens = tokenizer.encode("a new <|im|> b", add_special_tokens=False)
    assert tokens == [3, vocabulary["new"], vocabulary["<|im|>"], 4]
    assert tokenizer.decode(tokens, skip_special_tokens=True).split() == ["a", "new", "b"]
    assert resident.tokenizer.get_vocab() == vocabulary
    torch.testing.assert_close(logits(module, tokens), logits(resident.module, tokens))
    # 7 tokens; the base's 6 rows for 5 were padded to a multiple of 2
    assert module.config.vocab_size == module.get_input_embeddings().num_embeddings == 8
    assert module.config.eos_token_id == BASE["</s>"]
    if kind != "bert":
        assert module.generation_config.eos_token_id == BASE["</s>"]
        assert module.generation_config.temperature == 0.5
    assert not (tmp_path / "out" / "vocab.txt").exists()  # it tells of the old vocabulary
    for table in TABLES[kind, False]:
        rows = module.state_dict()[table]
        width = 1 if rows.ndim == 1 else rows.shape[1]
        for token, i in vocabulary.items():
            mine = row(0 if token in BASE else 1, table, token, width)
            theirs = row(1, table, token, width)
            expected = mine + 0.5 * (theirs - mine)
            torch.testing.assert_close(rows[i].view(-1), expected, rtol=0, atol=1e-6)


def test_an_experts_vocabulary_comes_with_its_chat(paths, tmp_path: Path, kind: str) -> None:
    module, tokenizer, resident = exported(paths, "chat", tmp_path / "out")
    assert tokenizer.get_vocab() == resident.tokenizer.get_vocab() == CHAT
    text = tokenizer.apply_chat_template([{"role": "user", "content": "b"}], tokenize=False)
    assert text == "<|im|> b"
    tokens = tokenizer.encode(text, add_special_tokens=False)
    assert tokens == [CHAT["<|im|>"], CHAT["b"]]
    torch.testing.assert_close(logits(module, tokens), logits(resident.module, tokens))
    ends = [CHAT["<|im|>"], CHAT["</s>"]]
    for one in (module, resident.module):
        assert one.config.vocab_size == 7
        assert one.config.eos_token_id == ends
        assert one.config.bos_token_id == CHAT["<s>"]
        assert one.config.pad_token_id == CHAT["</s>"]  # the base's token, as the expert has none
        if kind != "bert":
            assert one.generation_config.eos_token_id == ends
            assert one.generation_config.temperature == 0.5  # the base's; ids are the expert's


def test_the_bases_vocabulary_leaves_out_what_it_lacks(paths, tmp_path: Path) -> None:
    module, tokenizer, resident = exported(paths, "base", tmp_path / "out")
    assert tokenizer.get_vocab() == BASE
    assert (tmp_path / "out" / "vocab.txt").exists()
    assert module.config.vocab_size == resident.module.config.vocab_size == 6
    tokens = tokenizer.encode("a new b", add_special_tokens=False)
    assert tokens == [BASE["a"], BASE["<unk>"], BASE["b"]]
    torch.testing.assert_close(logits(module, tokens), logits(resident.module, tokens))


def test_an_exported_recipe_makes_the_model_again(paths, tmp_path: Path) -> None:
    exported(paths, "union", tmp_path / "out")
    recipe = read_recipe(tmp_path / "out" / "evomerge_recipe.yaml")
    assert recipe.tokenizer == "union"
    again = merged_tensors(recipe, open_recipe_models(recipe))
    first = merged_tensors(recipe_of(paths, "union"), open_recipe_models(recipe_of(paths, "union")))
    assert all(torch.equal(again[name], tensor) for name, tensor in first.items())


@pytest.mark.parametrize("kind", ["llama", "t5"], indirect=True)
def test_a_tied_head_stays_tied(tmp_path: Path, kind: str) -> None:
    shape: dict[str, Any] = {"kind": kind, "tied": True}
    paths = {
        "base": write_folder(tmp_path / "base", BASE, **shape),
        "chat": write_folder(tmp_path / "chat", CHAT, seed=1, **shape),
    }
    module, _, resident = exported(paths, "union", tmp_path / "out")
    for one in (module, resident.module):
        assert one.get_output_embeddings().weight is one.get_input_embeddings().weight
        assert one.get_input_embeddings().num_embeddings == 7
    torch.testing.assert_close(logits(module, [3, 4, 6]), logits(resident.module, [3, 4, 6]))


@pytest.mark.parametrize("kind", ["llama"], indirect=True)
def test_a_class_that_config_does_not_name_is_found(paths, tmp_path: Path) -> None:
    for path in paths.values():
        config = json.loads((path / "config.json").read_text())
        del config["architectures"]
        (path / "config.json").write_text(json.dumps(config))
    family = open_family(paths, "base", tokenizer="union")
    resident = Resident.open(family.checkpoints, "base")
    assert type(resident.module).__name__ == "LlamaForCausalLM"


@pytest.mark.parametrize("kind", ["llama"], indirect=True)
def test_tables_of_added_tokens_follow(paths, tmp_path: Path) -> None:
    """Older tokenizer_config.json files list the added tokens once more."""
    settings = json.loads((paths["base"] / "tokenizer_config.json").read_text())
    settings["added_tokens_decoder"] = {}
    (paths["base"] / "tokenizer_config.json").write_text(json.dumps(settings))
    _, tokenizer, _ = exported(paths, "union", tmp_path / "out")
    written = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    number = tokenizer.get_vocab()["<|im|>"]
    assert list(written["added_tokens_decoder"]) == [str(number)]
    assert tokenizer.added_tokens_decoder[number].special


@pytest.mark.parametrize("kind", ["llama"], indirect=True)
def test_a_search_measures_what_it_exports(paths, tmp_path: Path) -> None:
    """From the experiment's key to the run's export; the fitness has the output's tokenizer."""
    seen: set[int] = set()

    def fitness(model: Any) -> dict[str, float]:
        seen.add(model.get_input_embeddings().num_embeddings)
        return {"first": float(model.model.norm.weight.sum())}

    experiment: dict[str, Any] = {
        "base": paths["base"],
        "fitness": fitness,
        "searcher": "random",
        "budget": 3,
        "split": {"search": 1, "fresh": 0},
    }
    experts = {"chat": paths["chat"]}
    run = evomerge.search(experts, tokenizer="union", out=tmp_path / "run", **experiment)
    assert seen == {6, 8}  # the base alone is asked for its tasks
    out = run.export(folder=tmp_path / "best")
    assert set(AutoTokenizer.from_pretrained(out).get_vocab()) == set(BASE) | set(CHAT)
    assert read_recipe(out / "evomerge_recipe.yaml").tokenizer == "union"
    assert evomerge.search(experts, tokenizer="union", out=tmp_path / "run", **experiment)
    with pytest.raises(ConfigurationError, match="tokenizer"):
        evomerge.search(experts, tokenizer="base", out=tmp_path / "run", **experiment)
    with pytest.raises(ConfigurationError, match=r"tokenizer: no model 'chut'.*'chat'"):
        evomerge.search(experts, tokenizer="chut", out=tmp_path / "new", **experiment)


@pytest.mark.parametrize("kind", ["llama"], indirect=True)
def test_merging_without_a_search_takes_the_key_too(paths) -> None:
    merged = evomerge.merge({"chat": paths["chat"]}, "linear", base=paths["base"], tokenizer="chat")
    assert merged["lm_head.weight"].shape == (7, 8)


BYTES = {token: i for i, token in enumerate(["<|endoftext|>", "a", "b", "ab", "Ġ", "Ġa"])}
PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "##b", "b"]
SCORES = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), ("a", -3.0), ("b", -3.5)]
LLAMA = ["<unk>", "<s>", "</s>", "▁", "a", "b", "ab", "▁a"]
CLASSES_OF_TOKENIZERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "gpt2": (GPT2Tokenizer, {"vocab": BYTES, "merges": [("a", "b"), ("Ġ", "a")]}),
    "bert": (BertTokenizer, {"vocab": {token: i for i, token in enumerate(PIECES)}}),
    "t5": (T5Tokenizer, {"vocab": SCORES, "extra_ids": 0}),
    "llama": (
        LlamaTokenizer,
        {
            "vocab": {token: i for i, token in enumerate(LLAMA)},
            "merges": [("a", "b"), ("▁", "a")],
        },
    ),
}


def test_the_tokenizer_classes_of_transformers(tmp_path: Path, kind: str) -> None:
    """An expert that was given tokens the usual way, by add_tokens."""
    make, arguments = CLASSES_OF_TOKENIZERS[kind]
    own = {"base": make(**arguments), "x": make(**arguments), "y": make(**arguments)}
    own["x"].add_tokens(["<tool>"])
    own["x"].add_special_tokens({"additional_special_tokens": ["<|im|>"]})
    own["y"].add_special_tokens({"additional_special_tokens": ["<think>"]})
    paths = {}
    for seed, (name, tokenizer) in enumerate(own.items()):
        vocabulary = tokenizer.get_vocab()
        paths[name] = write_folder(tmp_path / name, vocabulary, kind=kind, seed=seed)
        (paths[name] / "tokenizer_config.json").unlink()
        tokenizer.save_pretrained(paths[name])
    _, tokenizer, resident = exported(paths, "union", tmp_path / "out")
    assert type(tokenizer) is type(resident.tokenizer) is make
    size = len(own["base"])
    assert tokenizer.get_vocab() == resident.tokenizer.get_vocab()
    new = {token: i for token, i in tokenizer.get_vocab().items() if i >= size}
    assert new == {"<tool>": size, "<|im|>": size + 1, "<think>": size + 2}
    assert tokenizer.encode("ab a b ab") == own["base"].encode("ab a b ab")
    for name in ("x", "y"):
        text = "a<tool>b <|im|> ab" if name == "x" else "a <think>b"
        ids = tokenizer.encode(text)
        assert tokenizer.convert_ids_to_tokens(ids) == own[name].convert_ids_to_tokens(
            own[name].encode(text)
        )
        assert tokenizer.decode(ids, skip_special_tokens=True) == own[name].decode(
            own[name].encode(text), skip_special_tokens=True
        )


def test_an_expert_cannot_be_called_union(tmp_path: Path) -> None:
    from evomerge.documents import Document
    from evomerge.experiment.config import parse_experiment

    data = {"base": "b", "experts": {"union": "x"}, "space": "per_expert", "budget": {}}
    with pytest.raises(ConfigurationError, match="call the expert otherwise"):
        parse_experiment(Document(data))


def test_an_adapter_with_other_tokens_is_an_adapter_to_mergekit(tmp_path: Path) -> None:
    ids = {"<unk>": 0, "a": 1, "b": 2}
    base = write_folder(tmp_path / "base", ids, num_rows=4, tied=True, seed=0)
    adapter = lora(base, tmp_path / "adapter", target_modules=["q_proj"], r=2)
    for recipe_tokens in (None, {"source": "base", "pad_to_multiple_of": 8}):
        recipe = Recipe.model_validate(
            {
                "base": "base",
                "models": {"base": str(base), "x": str(adapter)},
                "default": {"operator": "task_arithmetic"},
                "tokenizer": recipe_tokens,
            }
        )
        out = export_model(recipe, open_recipe_models(recipe), tmp_path / "out")
        (source,) = [
            one["model"]
            for one in yaml.safe_load((out / "mergekit_config.yml").read_text())["models"]
            if not isinstance(one["model"], str)
        ]
        assert source == {"model": {"path": str(base)}, "lora": {"path": str(adapter)}}
