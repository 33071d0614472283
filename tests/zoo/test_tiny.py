import dataclasses
import hashlib
import json
import random
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from evomerge.errors import ConfigurationError
from evomerge.zoo import tiny as tiny_module
from evomerge.zoo import tiny_training
from evomerge.zoo.tiny import tiny
from evomerge.zoo.tiny_folders import VOCABULARY, new_model, new_tokenizer
from evomerge.zoo.tiny_items import MODELS, SKILLS, answer, prompt, task_inputs
from evomerge.zoo.tiny_training import STAGES, encoded, named_generator, schedule

SHORT = tuple(dataclasses.replace(stage, steps=2, warmup_steps=1) for stage in STAGES)


@pytest.fixture(autouse=True)
def short(request, monkeypatch):
    """Two small steps a model, except where a test wants the real thing."""
    if request.node.get_closest_marker("slow") is None:
        monkeypatch.setattr(tiny_module, "STAGES", SHORT)
        monkeypatch.setattr(tiny_training, "BATCH_SIZE", 8)


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiny_module, "STAGES", SHORT)
        patch.setattr(tiny_training, "BATCH_SIZE", 8)
        return tiny(tmp_path_factory.mktemp("shared") / "zoo", seed=5)


def contents(folder):
    """sha256 of every file, by its path."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


def test_the_same_seed_gives_the_same_bytes(zoo, tmp_path):
    again = tiny(tmp_path / "elsewhere" / "again", seed=5)
    assert contents(again) == contents(zoo)
    assert {path.name for path in again.iterdir()} == {*MODELS, "zoo.json"}


def test_another_seed_gives_other_weights(zoo, tmp_path):
    other = tiny(tmp_path / "zoo", seed=6)
    weights = [f"{name}/model.safetensors" for name in MODELS]
    digests = [contents(folder)[path] for folder in (zoo, other) for path in weights]
    assert len(set(digests)) == 2 * len(MODELS)


def test_global_generators_threads_and_modes_are_left_alone(tmp_path):
    torch.manual_seed(1)
    before = torch.random.get_rng_state(), random.getstate(), np.random.get_state()  # noqa: NPY002
    threads = torch.get_num_threads()
    with torch.no_grad():
        tiny(tmp_path / "zoo")
        assert not torch.is_grad_enabled()
    after = torch.random.get_rng_state(), random.getstate(), np.random.get_state()  # noqa: NPY002
    assert torch.equal(before[0], after[0])
    assert before[1] == after[1]
    assert all(np.array_equal(a, b) for a, b in zip(before[2], after[2], strict=True))
    assert torch.get_num_threads() == threads


def test_the_global_generator_has_no_influence():
    torch.manual_seed(1)
    one = new_model(named_generator(0, "weights"))
    torch.manual_seed(2)
    two = new_model(named_generator(0, "weights"))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


def test_training_computes_on_one_thread(tmp_path):
    seen = set()
    tiny(tmp_path / "zoo", progress=lambda *_: seen.add(torch.get_num_threads()))
    assert seen == {1}


def test_progress_counts_every_step(tmp_path):
    calls = []
    tiny(tmp_path / "zoo", progress=lambda *call: calls.append(call))
    assert calls == [(name, step, 2) for name in MODELS for step in (1, 2)]


def test_a_complete_zoo_is_returned_at_once(zoo):
    before = contents(zoo)

    def never(*_):
        raise AssertionError("it trains again")

    assert tiny(zoo, seed=5, progress=never) == zoo
    assert contents(zoo) == before


def test_an_interrupted_training_leaves_nothing_that_counts(tmp_path):
    folder = tmp_path / "zoo"

    def interrupt(name, done, total):
        if name == "rot":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tiny(folder, progress=interrupt)
    assert not folder.exists()
    assert [path.name for path in tmp_path.iterdir()] == [".zoo.lock"]


def test_what_a_killed_training_left_is_swept_away(zoo, tmp_path):
    left = tmp_path / ".zoo.part" / "base"
    left.mkdir(parents=True)
    (left / "half a file").write_text("x")
    assert contents(tiny(tmp_path / "zoo", seed=5)) == contents(zoo)


def test_of_two_that_ask_at_once_one_trains(tmp_path):
    steps = []
    start = threading.Barrier(2)

    def ask(_):
        start.wait()
        return tiny(tmp_path / "zoo", progress=lambda *call: steps.append(call))

    with ThreadPoolExecutor(2) as both:
        assert set(both.map(ask, range(2))) == {tmp_path / "zoo"}
    assert len(steps) == 2 * len(MODELS)


@pytest.mark.parametrize("seed", [0, 6])
def test_a_folder_with_something_else_is_refused(tmp_path, zoo, seed):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "thesis.tex").write_text("years of work")
    with pytest.raises(ConfigurationError, match="no zoo"):
        tiny(folder, seed=seed)
    with pytest.raises(ConfigurationError, match="'seed': 5"):
        tiny(zoo, seed=seed)
    assert (folder / "thesis.tex").read_text() == "years of work"


def test_an_empty_folder_is_filled(tmp_path):
    assert tiny(tmp_path).joinpath("base", "config.json").exists()


def test_the_cache_is_the_default_and_an_older_recipe_there_is_replaced(monkeypatch, tmp_path):
    monkeypatch.setenv("EVOMERGE_CACHE", str(tmp_path))
    first = tiny(seed=2)
    assert first == tmp_path / "zoo" / "tiny-seed2"
    before = contents(first)
    longer = tuple(dataclasses.replace(stage, steps=3) for stage in SHORT)
    monkeypatch.setattr(tiny_module, "STAGES", longer)
    assert tiny(seed=2) == first
    assert contents(first)["base/model.safetensors"] != before["base/model.safetensors"]


def test_a_place_that_cannot_be_written_is_the_users_problem(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match="cannot be written"):
        tiny(tmp_path / "file" / "zoo")


@pytest.mark.parametrize("name", MODELS)
def test_transformers_loads_every_folder(zoo, name):
    model = AutoModelForCausalLM.from_pretrained(zoo / name)
    assert sum(tensor.numel() for tensor in model.parameters()) == 296_000
    assert {tensor.dtype for tensor in model.parameters()} == {torch.float32}
    stored = load_file(zoo / name / "model.safetensors")
    assert all(torch.equal(tensor, stored[key]) for key, tensor in model.state_dict().items())
    assert not torch.equal(stored["lm_head.weight"], stored["model.embed_tokens.weight"])
    card = (zoo / name / "README.md").read_text()
    assert "evomerge" in card
    assert "seed 5" in card
    assert "license: apache-2.0" in card


def test_experts_start_from_the_base(zoo):
    """Two steps move a weight by twice the learning rate at most (Adam's bound)."""
    base = load_file(zoo / "base" / "model.safetensors")
    for skill in SKILLS:
        expert = load_file(zoo / skill / "model.safetensors")
        moved = max((expert[key] - base[key]).abs().max().item() for key in base)
        assert 0 < moved < 2.5 * SHORT[1].learning_rate


def test_tokenizer_round_trip(zoo):
    tokenizer = AutoTokenizer.from_pretrained(zoo / "base")
    printable = "".join(map(chr, range(32, 127)))
    ids = tokenizer.encode(printable)
    assert ids == [1, *range(3, 98)]
    assert tokenizer.decode(ids, skip_special_tokens=True) == printable
    assert tokenizer.encode("a b", add_special_tokens=False) == [VOCABULARY[c] for c in "a b"]
    assert tokenizer.encode("ä\n") == [1]
    assert (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1, 2)


def test_lm_eval_encodes_a_prompt_as_in_training(zoo):
    hflm = pytest.importorskip("lm_eval.models.huggingface").HFLM
    trained_on = encoded([(prompt("sort", "qhxbe"), answer("sort", "qhxbe"))])[0].tolist()
    for options in ({}, {"add_bos_token": True}):
        model = hflm(pretrained=str(zoo / "base"), device="cpu", **options)
        assert model.tok_encode("Sqhxbe=") == trained_on[:8]
        context, continuation = model._encode_pair("Sqhxbe=", "behqx")
        assert [*context, *continuation, model.eot_token_id] == trained_on
        assert model.max_length == 48


def test_batches_are_padded_on_the_left():
    batch = new_tokenizer()(["Sabcde=", "ab"], padding=True)
    assert set(batch) == {"input_ids", "attention_mask"}  # generate() refuses any more
    assert batch["input_ids"][1] == [0, 0, 0, 0, 0, 1, VOCABULARY["a"], VOCABULARY["b"]]


def test_schedule_warms_up_and_ends_at_a_tenth():
    stage = STAGES[0]
    rates = [schedule(step, stage) for step in range(stage.steps)]
    assert rates[0] == pytest.approx(1 / 30)
    assert max(rates) == 1.0 == rates[29] == rates[30]
    assert rates[-1] == pytest.approx(0.1, abs=0.001)


def test_the_label_names_seed_and_models(zoo):
    label = json.loads((zoo / "zoo.json").read_text())
    assert (label["zoo"], label["seed"], label["models"]) == ("tiny", 5, list(MODELS))


# --- the real thing -------------------------------------------------------------------------------


def exact_match(model, skill, count=300):
    """Greedy answers that are right to the end; the gold prefix decides the same as generating."""
    tokens = encoded([(prompt(skill, x), answer(skill, x)) for x in task_inputs(skill)[:count]])
    with torch.no_grad():
        said = model(input_ids=tokens[:, :-1]).logits[:, -6:].argmax(-1)
    return (said == tokens[:, -6:]).all(1).float().mean().item()


@pytest.mark.slow
def test_whole_training_repeats_and_merging_beats_every_expert(tmp_path):
    zoo = tiny(tmp_path / "one", seed=1)
    assert contents(zoo) == contents(tiny(tmp_path / "two", seed=1))

    models = {name: AutoModelForCausalLM.from_pretrained(zoo / name) for name in MODELS}
    means = {
        name: sum(exact_match(model, skill) for skill in SKILLS) / len(SKILLS)
        for name, model in models.items()
    }
    base, *experts = (dict(model.named_parameters()) for model in models.values())
    merged = AutoModelForCausalLM.from_pretrained(zoo / "base")
    with torch.no_grad():
        for name, tensor in merged.named_parameters():
            for weight, expert in zip((0.55, 0.12, 0.75), experts, strict=True):
                tensor += weight * (expert[name] - base[name])
    assert exact_match(models["sort"], "sort") > 0.9
    best = max(means.values())
    assert sum(exact_match(merged, skill) for skill in SKILLS) / len(SKILLS) > best + 0.05
