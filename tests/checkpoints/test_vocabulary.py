from __future__ import annotations

import json
import math
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from token_models import (
    KINDS,
    MERGEKIT_MODELS,
    MERGEKIT_MULTIPLE,
    MERGEKIT_WEIGHTS,
    RECIPE_TOKENS,
    TABLES,
    added,
    keys,
    row,
    word_level,
    write_folder,
)
from tokenizers import Tokenizer

from evomerge.checkpoints.family import Family, open_family
from evomerge.checkpoints.open import open_checkpoint
from evomerge.checkpoints.preflight import preflight
from evomerge.checkpoints.small_files import content, small_files
from evomerge.checkpoints.token_settings import following, resized, with_ids_of
from evomerge.checkpoints.token_tables import find_tables
from evomerge.checkpoints.vocabulary import rows_of_union
from evomerge.errors import ConfigurationError, ModelError
from evomerge.merging.resident import Resident
from evomerge.pools.worker import Worker, WorkerSpec
from evomerge.recipe import Merge, Recipe, TokenizerSpec
from evomerge.results.export import merged_tensors

POOL = [f"w{i}" for i in range(8)]
BASE = {"<unk>": 0, "a": 1, "b": 2, "c": 3}


def output_ids(family: Family) -> dict[str, int]:
    """Of the output tokenizer, as the tokenizers library reads it."""
    text = content(small_files(family.checkpoints["base"])["tokenizer.json"]).decode()
    return Tokenizer.from_str(text).get_vocab()


@st.composite
def vocabularies(draw: st.DrawFn) -> tuple[dict[str, int], int]:
    """Ids in any order, perhaps with holes, and the rows of the table."""
    tokens = ["<unk>", *draw(st.lists(st.sampled_from(POOL), unique=True, min_size=1))]
    holes = draw(st.integers(0, 2))
    ids = draw(st.permutations(range(len(tokens) + holes)))[: len(tokens)]
    rows = max(ids) + 1 + draw(st.integers(0, 4))
    return dict(zip(tokens, ids, strict=True)), rows


@st.composite
def families(draw: st.DrawFn) -> dict[str, tuple[dict[str, int], int]]:
    models = {name: draw(vocabularies()) for name in ("base", "x", "y")}
    ids, rows = models["base"]  # what is appended to may have no holes
    order = sorted(ids, key=lambda token: ids[token])
    models["base"] = ({token: i for i, token in enumerate(order)}, max(rows, len(order)))
    return models


def brute_force(
    models: dict[str, tuple[dict[str, int], int]], wanted: list[str | int], table: str
) -> dict[str, list[torch.Tensor]]:
    """Each model's rows, token by token, by the rule that the documentation states."""
    width = 8
    own = {
        name: {key: row(seed, table, key, width) for key in keys(*models[name])}
        for seed, name in enumerate(models)
    }
    everyone = torch.stack([v for key, v in own["base"].items() if isinstance(key, str)]).mean(0)
    result: dict[str, list[torch.Tensor]] = {name: [] for name in models}
    for key in wanted:
        owners = [name for name in models if key in own[name]]
        for name in models:
            if key in own[name]:
                result[name].append(own[name][key])
            elif "base" in owners:
                result[name].append(own["base"][key])
            elif owners:
                result[name].append(torch.stack([own[o][key] for o in owners]).mean(0))
            else:
                result[name].append(everyone)
    return result


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(families(), st.sampled_from(["union", "base", "x"]), st.booleans())
def test_rows_are_those_of_brute_force(models, tokenizer: str, tied: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        paths = {
            name: write_folder(
                Path(folder) / name, ids, num_rows=rows, tied=tied, seed=seed, tokenizer=None
            )
            for seed, (name, (ids, rows)) in enumerate(models.items())
        }
        family = open_family(paths, "base", tokenizer=tokenizer)
        ids = output_ids(family)
        base_ids, base_rows = models["base"]
        if tokenizer == "union":
            assert {token: ids[token] for token in base_ids} == base_ids
            assert set(ids) == {token for own, _ in models.values() for token in own}
            assert sorted(ids.values()) == list(range(len(ids)))
            step = 1
            while base_rows > len(base_ids) and base_rows % (2 * step) == 0 and step < 512:
                step *= 2
            rows = max(base_rows, math.ceil(len(ids) / step) * step)
            rows = base_rows if len(ids) <= base_rows else rows
        else:
            assert ids == models[tokenizer][0]
            rows = models[tokenizer][1]
        assert preflight(family.checkpoints, "base") == []
        for table in TABLES["llama", tied]:
            expected = brute_force(models, keys(ids, rows), table)
            for name, checkpoint in family.checkpoints.items():
                assert checkpoint.shape(table) == (rows, 8)
                torch.testing.assert_close(
                    checkpoint.tensor(table), torch.stack(expected[name]), rtol=0, atol=1e-6
                )
        assert all(c.config["vocab_size"] == rows for c in family.checkpoints.values())


@pytest.mark.parametrize("tokenizer", ["union", "base", "x", "union with rows", "base with rows"])
@pytest.mark.parametrize("tied", [True, False])
def test_rows_are_mergekits(tmp_path: Path, tokenizer: str, tied: bool) -> None:
    """Row by token; mergekit numbers the tokens of a union otherwise, and keeps no padding rows."""
    golden = json.loads((Path(__file__).parent / "golden/mergekit_vocabulary.json").read_text())
    paths = {
        name: write_folder(tmp_path / name, ids, num_rows=rows, tied=tied, seed=seed)
        for seed, (name, (ids, rows)) in enumerate(MERGEKIT_MODELS.items())
    }
    spec = TokenizerSpec(source=tokenizer.split()[0])
    if tokenizer.endswith("rows"):
        more = {"tokens": RECIPE_TOKENS, "pad_to_multiple_of": MERGEKIT_MULTIPLE}
        spec = TokenizerSpec.model_validate({**spec.model_dump(), **more})
    default = Merge(operator="task_arithmetic", parameters={"weight": dict(MERGEKIT_WEIGHTS)})
    models = {name: str(path) for name, path in paths.items()}
    recipe = Recipe(base="base", models=models, default=default, tokenizer=spec)
    family = open_family(paths, "base", tokenizer=recipe.tokenizer)
    ids = output_ids(family)
    merged = merged_tensors(recipe, family.checkpoints)
    expected_rows = golden[f"{tokenizer} {'tied' if tied else 'untied'}"]
    num_rows = expected_rows.pop("rows")
    if tokenizer.endswith("rows"):
        assert len(merged["model.embed_tokens.weight"]) == num_rows
        assert family.checkpoints["base"].config["vocab_size"] == num_rows
    for table, rows in expected_rows.items():
        assert rows.keys() == ids.keys()
        for token, expected in rows.items():
            if tokenizer == "base with rows" and token in ("new", "<|im|>"):
                continue  # there mergekit takes the base's padding for its row of a token it adds
            mine = merged[table][ids[token]]
            torch.testing.assert_close(mine, torch.tensor(expected), rtol=0, atol=1e-6)


TEXT = "a c b new a"


def merged_logits(paths: dict[str, Path], tokenizer: str, operator: str) -> dict[str, torch.Tensor]:
    """The merged model's logits for a text, by token (padding by its order)."""
    family = open_family(paths, "base", tokenizer=tokenizer)
    resident = Resident.open(family.checkpoints, "base")
    weights = {name: 0.3 + 0.3 * i for i, name in enumerate(sorted(set(paths) - {"base"}))}
    default = Merge(operator=operator, parameters={"weight": weights})
    models = {name: str(path) for name, path in paths.items()}
    recipe = Recipe(base="base", models=models, default=default, tokenizer=tokenizer)
    resident.write(recipe)
    tokens = torch.tensor([resident.tokenizer.encode(TEXT, add_special_tokens=False)])
    extra = {"decoder_input_ids": tokens} if resident.module.config.model_type == "t5" else {}
    logits = resident.module(tokens, **extra).logits[0]
    names = keys(resident.tokenizer.get_vocab(), logits.shape[1])
    return {str(key): logits[:, i] for i, key in enumerate(names)}


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.permutations(range(8)),
    st.sampled_from(["union", "base", "x"]),
    st.booleans(),
    st.sampled_from(KINDS),
    st.sampled_from(["task_arithmetic", "linear", "ties"]),
)
def test_permuted_ids_change_no_logits(ids, tokenizer, tied, kind, operator) -> None:
    """Tokens, padding rows and their order among each other may be anywhere."""
    tokens = ["<unk>", "c", "new", "b", "a"]
    plain = dict(zip(tokens, range(5), strict=True))
    moved = dict(zip(tokens, ids, strict=False))
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        shape: dict[str, Any] = {"kind": kind, "tied": tied, "num_rows": 8}
        base = write_folder(root / "base", BASE, **shape)
        other = write_folder(root / "y", {"<unk>": 0, "a": 1, "mine": 2}, seed=3, **shape)
        one = write_folder(root / "one", plain, seed=2, **shape)
        two = write_folder(root / "two", moved, seed=2, **shape)
        first = merged_logits({"base": base, "x": one, "y": other}, tokenizer, operator)
        second = merged_logits({"base": base, "x": two, "y": other}, tokenizer, operator)
    assert first.keys() == second.keys()
    for token, logits in first.items():
        torch.testing.assert_close(second[token], logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_tables_are_found_without_their_names(tmp_path: Path, kind: str, tied: bool) -> None:
    folder = write_folder(tmp_path / "m", BASE, kind=kind, tied=tied, num_rows=29)
    opened = open_checkpoint(folder, name="m")
    found = find_tables(opened)
    assert sorted(found.axes) == TABLES[kind, tied]
    assert found.num_rows == 29
    assert set(found.axes) == {name for name in opened.names if 29 in opened.shape(name)}


def test_a_table_may_count_tokens_along_its_second_axis(tmp_path: Path) -> None:
    """BART's final_logits_bias has shape (1, tokens)."""
    from transformers import BartConfig, BartForConditionalGeneration

    sizes = {"encoder_layers": 1, "decoder_layers": 1, "d_model": 8, "encoder_ffn_dim": 8}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "decoder_ffn_dim": 8}
    for name, ids in {"base": BASE, "x": {"<unk>": 0, "new": 1, "a": 2}}.items():
        folder = write_folder(tmp_path / name, ids, num_rows=5)
        config = BartConfig(vocab_size=5, max_position_embeddings=16, **sizes, **heads)
        module = BartForConditionalGeneration(config)
        module.final_logits_bias = torch.arange(5.0)[None] + 10 * (name == "x")
        module.save_pretrained(folder)
    family = open_family({n: tmp_path / n for n in ("base", "x")}, "base", tokenizer="x")
    bias = {n: c.tensor("final_logits_bias").tolist() for n, c in family.checkpoints.items()}
    assert bias["x"] == [[10, 11, 12, 13, 14]]
    assert bias["base"] == [[0, 11, 1, 4, 14]]  # <unk>, new (x's), a, padding 0, padding 1 (x's)
    assert preflight(family.checkpoints, "base") == []


def test_models_with_the_same_tokens_are_left_alone(tmp_path: Path) -> None:
    paths = {
        name: write_folder(tmp_path / name, BASE, seed=i, num_rows=6)
        for i, name in enumerate(("base", "x"))
    }
    plain = open_family(paths, "base").checkpoints
    for tokenizer in ("union", "base"):
        aligned = open_family(paths, "base", tokenizer=tokenizer).checkpoints
        assert {n: c.sha256() for n, c in aligned.items()} == {
            n: c.sha256() for n, c in plain.items()
        }


def test_a_token_of_one_model_keeps_its_row_whatever_the_weights(tmp_path: Path) -> None:
    paths = {
        "base": write_folder(tmp_path / "base", BASE),
        "x": write_folder(tmp_path / "x", BASE | {"new": 4}, seed=1),
        "y": write_folder(tmp_path / "y", BASE, seed=2),
    }
    family = open_family(paths, "base", tokenizer="union")
    resident = Resident.open(family.checkpoints, "base")
    models = {name: str(path) for name, path in paths.items()}
    for weight in (0.0, 0.7, 2.0):
        default = Merge(operator="task_arithmetic", parameters={"weight": weight})
        resident.write(Recipe(base="base", models=models, default=default, tokenizer="union"))
        for table in TABLES["llama", False]:
            merged = resident.module.state_dict()[table]
            torch.testing.assert_close(merged[4], row(1, table, "new", 8), rtol=0, atol=1e-6)


def test_writing_the_module_leaves_the_models_as_they_are(tmp_path: Path) -> None:
    paths = {
        "base": write_folder(tmp_path / "base", BASE),
        "x": write_folder(tmp_path / "x", BASE | {"new": 4}, seed=1),
    }
    family = open_family(paths, "base", tokenizer="union")
    before = {
        name: family.checkpoints["base"].tensor(name).clone() for name in TABLES["llama", False]
    }
    norm = family.checkpoints["base"].tensor("model.norm.weight").clone()
    resident = Resident.open(family.checkpoints, "base")
    default = Merge(operator="linear", parameters={"weight": 1.0})
    models = {name: str(path) for name, path in paths.items()}
    resident.write(Recipe(base="base", models=models, default=default, tokenizer="union"))
    assert not torch.equal(resident.module.model.norm.weight, norm)
    assert torch.equal(family.checkpoints["base"].tensor("model.norm.weight"), norm)
    for name, tensor in before.items():
        assert torch.equal(family.checkpoints["base"].tensor(name), tensor)


def test_workers_see_the_same_views(tmp_path: Path) -> None:
    paths = {
        "base": str(write_folder(tmp_path / "base", BASE)),
        "x": str(write_folder(tmp_path / "x", {"<unk>": 0, "new": 1, "a": 2}, seed=1)),
    }
    opened = open_family(paths, "base", tokenizer="union").checkpoints
    sha256 = {name: checkpoint.sha256() for name, checkpoint in opened.items()}
    Worker(WorkerSpec(paths, "base", sha256=sha256, tokenizer="union"), "one")
    with pytest.raises(ModelError, match="has changed since the run began"):
        Worker(WorkerSpec(paths, "base", sha256=sha256, tokenizer="base"), "two")
    moved = word_level({"<unk>": 0, "new": 2, "a": 1})  # the same tensors, read otherwise
    (Path(paths["x"]) / "tokenizer.json").write_text(json.dumps(moved))
    with pytest.raises(ModelError, match=r"model x: .* has changed since the run began"):
        Worker(WorkerSpec(paths, "base", sha256=sha256, tokenizer="union"), "three")


def test_the_order_of_the_models_changes_nothing(tmp_path: Path) -> None:
    """Recipes are stored with sorted names; a union has the same ids all the same."""
    paths = {
        "base": write_folder(tmp_path / "base", BASE),
        "y": write_folder(tmp_path / "y", BASE | {"his": 4}, seed=1),
        "x": write_folder(tmp_path / "x", BASE | {"hers": 4}, seed=2),
    }
    one = open_family(paths, "base", tokenizer="union")
    two = open_family({name: paths[name] for name in sorted(paths)}, "base", tokenizer="union")
    assert output_ids(one) == output_ids(two) == BASE | {"hers": 4, "his": 5}
    assert {n: c.sha256() for n, c in one.checkpoints.items()} == {
        n: c.sha256() for n, c in two.checkpoints.items()
    }


def test_a_model_without_a_tokenizer_is_taken_to_have_the_bases(tmp_path: Path) -> None:
    base = write_folder(tmp_path / "base", BASE)
    bare = write_folder(tmp_path / "x", BASE, seed=1)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (bare / name).unlink()
    family = open_family({"base": base, "x": bare}, "base", tokenizer="union")
    assert family.notes == ("x: has no tokenizer; its rows are taken to be the base's",)
    longer = write_folder(tmp_path / "y", BASE, seed=1, num_rows=9)
    (longer / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match="what its rows stand for is not known"):
        open_family({"base": base, "y": longer}, "base", tokenizer="union")


def test_tokens_beyond_the_table_have_no_row(tmp_path: Path) -> None:
    """A [PAD] that was added to the tokenizer, and never to the model."""
    base = write_folder(tmp_path / "base", BASE | {"[PAD]": 4}, num_rows=4)
    x = write_folder(tmp_path / "x", BASE | {"new": 4, "far": 5}, num_rows=5, seed=1)
    family = open_family({"base": base, "x": x}, "base", tokenizer="union")
    ids = output_ids(family)
    assert ids == BASE | {"[PAD]": 4, "new": 5}  # "far" is nobody's
    for table in TABLES["llama", False]:
        for checkpoint in family.checkpoints.values():
            rows = checkpoint.tensor(table)
            assert len(rows) == 6
            torch.testing.assert_close(rows[5], row(1, table, "new", 8))
            mean = torch.stack([row(0, table, token, 8) for token in BASE]).mean(0)
            torch.testing.assert_close(rows[4], mean)


@pytest.mark.parametrize(
    ("needed", "base_rows", "base_tokens", "rows"),
    [
        (10, 10, 10, 10),
        (11, 10, 10, 11),  # exact where the base is
        (32010, 32064, 32000, 32064),  # fits into the padding
        (32070, 32064, 32011, 32128),  # 64
        (152000, 151936, 151646, 152064),  # 128
        (65537, 65536, 65000, 66048),  # at most 512
        (8, 7, 6, 8),
    ],
)
def test_the_rows_of_a_union(needed: int, base_rows: int, base_tokens: int, rows: int) -> None:
    assert rows_of_union(needed, base_rows, base_tokens) == rows


def test_ids_in_settings_follow_their_tokens() -> None:
    before = {
        "eos_token_id": [1, 2],
        "pad_token_id": 3,
        "bos_token_id": -1,
        "text_config": {"image_token_id": 2, "hidden_size": 2},
        "suppress_tokens": [1],
        "bad_words_ids": [[1], [2, 1]],
        "vocab_size": 4,
    }
    assert following(before, {1: "x", 2: "y", 3: "z"}, {"x": 7, "y": 1}) == {
        "eos_token_id": [7, 1],
        "pad_token_id": None,
        "bos_token_id": -1,
        "text_config": {"image_token_id": 1, "hidden_size": 2},
        "suppress_tokens": [7],
        "bad_words_ids": [[7], [1, 7]],
        "vocab_size": 4,
    }
    chosen = {"eos_token_id": 9, "hidden_size": 5, "text_config": {"image_token_id": 8}}
    assert with_ids_of(before, chosen) == {
        **before,
        "eos_token_id": 9,
        "text_config": {"image_token_id": 8, "hidden_size": 2},
    }


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, {"vocab_size": 9}),
        ({"vocab_size": 4}, {"vocab_size": 9}),
        ({"text_config": {}}, {"text_config": {"vocab_size": 9}}),
        ({"vocab_size": 4, "text_config": {}}, {"vocab_size": 9, "text_config": {}}),
    ],
)
def test_vocab_size_stands_where_it_stood(config: Any, expected: Any) -> None:
    assert resized(config, 9) == expected


def test_names_of_tokenizers_are_checked(tmp_path: Path) -> None:
    paths = {"base": write_folder(tmp_path / "base", BASE)}
    with pytest.raises(ConfigurationError, match=r"no model 'bose'.*did you mean 'base'"):
        open_family(paths, "base", tokenizer="bose")
    merge = {"operator": "linear"}
    Recipe(base="a", models={"a": "x"}, default=merge, tokenizer="union")
    with pytest.raises(ValueError, match="cannot be called 'union'"):
        Recipe(base="union", models={"union": "x"}, default=merge)
    with pytest.raises(ValueError, match="unknown model"):
        Recipe(base="a", models={"a": "x"}, default=merge, tokenizer="base")


def test_state_dicts_have_no_tokens() -> None:
    state = {"w": torch.zeros(2, 2)}
    with pytest.raises(ModelError, match=r"(?s)model base.*needs transformers folders.*model x"):
        open_family({"base": state, "x": state}, "base", tokenizer="union")


@pytest.mark.parametrize("name", ["vocab.txt", "tokenizer.model"])
def test_other_forms_of_tokenizers_are_refused_with_a_way_out(tmp_path: Path, name: str) -> None:
    base = write_folder(tmp_path / "base", BASE)
    other = write_folder(tmp_path / "x", BASE, seed=1, files={name: "a\n"})
    (other / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match=rf"model x: has {name} and no tokenizer.json.*save_pre"):
        open_family({"base": base, "x": other}, "base", tokenizer="base")


def test_models_of_several_vocabularies_are_refused(tmp_path: Path) -> None:
    base = write_folder(tmp_path / "base", BASE, decoder_vocab_size=7)
    with pytest.raises(ModelError, match=r"more than one vocabulary \(decoder_vocab_size\)"):
        open_family({"base": base}, "base", tokenizer="base")


def test_tables_and_config_have_to_agree(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "base", BASE)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": 7}))
    with pytest.raises(ModelError, match=r"embed_tokens.weight: has 4 rows, vocab_size is 7"):
        open_family({"base": folder}, "base", tokenizer="base")
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "unheard"}))
    with pytest.raises(ModelError, match="cannot build a model of type 'unheard'"):
        open_family({"base": folder}, "base", tokenizer="base")


def refusal(tmp_path: Path, ids: dict[str, int], **shape: Any) -> str:
    paths = {
        "base": write_folder(tmp_path / "base", BASE, num_rows=6),
        "x": write_folder(tmp_path / "x", ids, seed=1, **shape),
    }
    with pytest.raises(ModelError) as caught:
        preflight(open_family(paths, "base").checkpoints, "base")
    return str(caught.value)


def test_other_tokens_are_refused_with_both_sizes_and_the_first(tmp_path: Path) -> None:
    text = refusal(tmp_path, {"<unk>": 0, "a": 2, "b": 1, "c": 3, "d": 4}, num_rows=6)
    assert "x: tokenizer: has 5 tokens, the base has 4" in text
    assert (
        "3 token ids differ, first 1: 'b', in the base 'a'; 2: 'a', in the base 'b'; 4: 'd'" in text
    )
    assert "`tokenizer: union`" in text


def test_padding_rows_are_refused_with_both_sizes(tmp_path: Path) -> None:
    text = refusal(tmp_path, BASE, num_rows=8)
    assert "x: vocab_size: the tables of tokens have 8 rows, the base's 6" in text
    assert "`tokenizer: union`" in text


def test_tokens_are_compared_across_kinds_of_files(tmp_path: Path) -> None:
    paths = {
        "base": write_folder(tmp_path / "base", BASE, num_rows=6),
        "x": write_folder(
            tmp_path / "x",
            BASE,
            seed=1,
            num_rows=6,
            files={"vocab.json": {"<unk>": 0, "a": 1, "b": 2}, "added_tokens.json": {"c": 3}},
        ),
    }
    (paths["x"] / "tokenizer.json").unlink()
    assert preflight(open_family(paths, "base").checkpoints, "base") == []
    (paths["x"] / "added_tokens.json").write_text('{"z": 3}')
    with pytest.raises(ModelError, match="1 token ids differ, first 3: 'z', in the base 'c'"):
        preflight(open_family(paths, "base").checkpoints, "base")


def test_notes_name_what_is_lacking_and_what_is_left_out(tmp_path: Path) -> None:
    new = word_level(BASE | {"new": 4}, [added(5, "<|im|>", special=True)])
    paths = {
        "base": write_folder(tmp_path / "base", BASE),
        "x": write_folder(tmp_path / "x", BASE | {"new": 4, "<|im|>": 5}, tokenizer=new, seed=1),
    }
    assert open_family(paths, "base", tokenizer="base").notes == (
        "x: 2 tokens ('new', '<|im|>') not in the output, left out",
    )
    assert open_family(paths, "base", tokenizer="union").notes == (
        "tokenizer union: the base's 4 tokens and 2 of the others",
        "base: lacks 2 tokens ('new', '<|im|>'), and gets the rows of others",
    )


def test_new_tokens_have_ids_that_do_not_hang_on_their_order(tmp_path: Path) -> None:
    paths = {
        name: write_folder(tmp_path / name, ids, num_rows=rows, tied=True, seed=seed)
        for seed, (name, (ids, rows)) in enumerate(MERGEKIT_MODELS.items())
    }
    made = []
    for new in (["<z>", "<q>"], ["<q>", "<z>"]):
        tokens = {token: {"model": "x", "token": "new"} for token in new}
        spec = TokenizerSpec.model_validate({"source": "base", "tokens": tokens})
        family = open_family(paths, "base", tokenizer=spec)
        assert not any("<q>" in note for note in family.notes)
        made.append((output_ids(family), family.checkpoints["x"].sha256()))
    assert made[0] == made[1]
    assert made[0][0]["<q>"] < made[0][0]["<z>"]
