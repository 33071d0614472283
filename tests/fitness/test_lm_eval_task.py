"""The oracle is lm-evaluation-harness itself: its evaluator around its own model class."""

from __future__ import annotations

import random
import shutil
import string
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from evomerge.documents import Document
from evomerge.errors import CandidateError, ConfigurationError
from evomerge.experiment.config import parse_experiment
from evomerge.experiment.wire import wire
from evomerge.files import catalogue_folder
from evomerge.fitness.lm_eval_task import LmEvalTask
from evomerge.records import Measurements

ASSETS = Path(__file__).parent / "assets"


@dataclass
class Resident:
    module: Any
    tokenizer: Any


def character_tokenizer(bos: bool = False) -> PreTrainedTokenizerFast:
    pad, bos_token, eos = specials = ["<pad>", "<s>", "</s>"]
    characters = [*string.ascii_letters, *string.digits, "=", "\n", " ", ".", ":"]
    vocabulary = {token: index for index, token in enumerate(specials + characters)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, "."))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    options = {"bos_token": bos_token} if bos else {}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=pad,
        eos_token=eos,
        clean_up_tokenization_spaces=False,
        **options,
    )


def random_llama(seed: int, vocab_size: int, positions: int = 128) -> LlamaForCausalLM:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=vocab_size,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=positions,
            bos_token_id=None,
            eos_token_id=2,
            pad_token_id=0,
            initializer_range=0.4,  # far from uniform, so that answers differ and sometimes end
        )
        return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def resident() -> Resident:
    tokenizer = character_tokenizer()
    return Resident(random_llama(3, len(tokenizer)), tokenizer)


@pytest.fixture(autouse=True)
def global_generators():
    """lm-eval's evaluator reseeds the global generators; keep that to itself."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    yield
    random.setstate(states[0])
    np.random.set_state(states[1])  # noqa: NPY002
    torch.set_rng_state(states[2])


def lm_eval_results(
    model: Resident, folder: Path, task: str, *, batch_size: int, **options: Any
) -> dict[str, Any]:
    """What lm-eval's `simple_evaluate` returns."""
    import os

    from lm_eval import evaluator
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    evaluator.add_env_info = lambda storage: None  # half a second for a list of packages
    here = Path.cwd()
    os.chdir(folder)  # lm-eval reads data files relative to where it is started
    try:
        results: dict[str, Any] = evaluator.simple_evaluate(
            model=HFLM(pretrained=model.module, tokenizer=model.tokenizer, batch_size=batch_size),
            tasks=[task],
            task_manager=TaskManager(include_path=str(folder), include_defaults=False),
            bootstrap_iters=0,
            **options,
        )
    finally:
        os.chdir(here)
    return results


def lm_eval_samples(
    model: Resident, folder: Path, task: str, *, batch_size: int, **options: Any
) -> list[dict[str, Any]]:
    """lm-eval's own record of every item, in the order of the documents."""
    results = lm_eval_results(model, folder, task, batch_size=batch_size, **options)
    return sorted(results["samples"][task], key=lambda sample: sample["doc_id"])


def asset(task: str, **options: Any) -> LmEvalTask:
    return LmEvalTask(task, task=f"assets_{task}", path=ASSETS, **options)


def scored_by_lm_eval(task: LmEvalTask, item: int, answer: str) -> float:
    """The score without any short cut."""
    return float(task._results(item, [answer])[task.metric])


def log_likelihoods(sample: dict[str, Any]) -> list[float]:
    return [answer[0] for answer in sample["filtered_resps"]]


@pytest.fixture(scope="module")
def copy_task() -> LmEvalTask:
    return asset("copy")


@given(
    item=st.integers(0, 15),
    before=st.sampled_from(["", " ", "\0", "x"]),
    after=st.sampled_from(["", " ", "\n", "\0", "\0\0", ".", "É"]),
)
def test_exact_match_is_lm_evals(copy_task, item, before, after):
    assert copy_task._expected is not None
    answer = before + copy_task._expected[item] + after
    assert copy_task.score(item, [answer]) == scored_by_lm_eval(copy_task, item, answer)


def test_exact_match_with_options_is_left_to_lm_eval(tmp_path):
    plain = "metric: exact_match"
    for number, new in enumerate([plain, f"{plain}\n    ignore_case: true"]):
        folder = tmp_path / str(number)
        folder.mkdir()
        task = LmEvalTask("copy", **changed(folder, plain, new))
        assert (task._expected is None) == bool(number)
        assert task.score(0, ["QRSTQ"]) == scored_by_lm_eval(task, 0, "QRSTQ")


# --- equal to lm-eval -----------------------------------------------------------------------------


@pytest.mark.parametrize(("num_fewshot", "bos"), [(0, False), (2, False), (2, True)])
def test_generation_is_lm_evals_to_the_last_bit(num_fewshot, bos):
    tokenizer = character_tokenizer(bos)
    model = Resident(random_llama(3, len(tokenizer)), tokenizer)
    theirs = lm_eval_samples(model, ASSETS, "assets_copy", batch_size=16, num_fewshot=num_fewshot)
    task = asset("copy", batch_size=16, num_fewshot=num_fewshot)
    ours = task.respond(model, task.items)
    assert list(ours.texts) == [sample["filtered_resps"][0] for sample in theirs]
    assert ours.columns["score"].tolist() == [sample["exact_match"] for sample in theirs]
    assert len(set(ours.texts)) > 5  # the model answers differently, or the test shows nothing
    assert len({len(text) for text in ours.texts}) > 2  # and some answers end early


@pytest.mark.parametrize("num_fewshot", [0, 2])
def test_choices_are_lm_evals_to_the_last_bit(resident, num_fewshot):
    theirs = lm_eval_samples(
        resident, ASSETS, "assets_pick", batch_size=16, num_fewshot=num_fewshot
    )
    for metric in ("acc", "acc_norm"):
        task = asset(
            "pick", batch_size=16, num_fewshot=num_fewshot, metric=metric, shared_prefix=False
        )
        ours = task.respond(resident, task.items)
        assert ours.columns["score"].tolist() == [sample[metric] for sample in theirs]
        assert 0 < ours.columns["score"].mean() < 1
        margins, best = [], []
        for sample in theirs:
            lengths = [
                len(choice) if metric == "acc_norm" else 1 for choice in sample["doc"]["choices"]
            ]
            values = np.array(log_likelihoods(sample)) / lengths
            gold = sample["doc"]["gold"]
            margins.append(np.float32(values[gold] - np.delete(values, gold).max()))
            best.append(values.argmax())
        assert ours.columns["margin"].tolist() == margins
        assert ours.columns["choice"].tolist() == best


def test_log_likelihoods_are_lm_evals_to_the_last_bit(resident):
    theirs = lm_eval_samples(resident, ASSETS, "assets_finish", batch_size=16)
    for metric in ("perplexity", "acc"):
        task = asset("finish", batch_size=16, metric=metric)
        ours = task.respond(resident, task.items)
        assert ours.columns["score"].tolist() == [np.float32(sample[metric]) for sample in theirs]
        assert ours.columns["loglikelihood"].tolist() == [log_likelihoods(s)[0] for s in theirs]


@pytest.mark.parametrize("name", ["copy", "pick"])
def test_what_does_not_fit_loses_its_beginning_as_in_lm_eval(name):
    tokenizer = character_tokenizer()
    model = Resident(random_llama(3, len(tokenizer), positions=20), tokenizer)
    theirs = lm_eval_samples(model, ASSETS, f"assets_{name}", batch_size=16, num_fewshot=2)
    task = asset(name, batch_size=16, num_fewshot=2)
    metric = "exact_match" if name == "copy" else "acc"
    ours = task.respond(model, task.items)
    assert ours.columns["score"].tolist() == [sample[metric] for sample in theirs]
    if name == "copy":
        assert list(ours.texts) == [sample["filtered_resps"][0] for sample in theirs]


CHAT = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m.role == 'system' %}{{ raise_exception('no such role') }}{% endif %}"
    "{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


@pytest.mark.parametrize("more", ["", 'gen_prefix: "So:"', 'description: "Be brief."'])
@pytest.mark.parametrize("turns", [True, False])
@pytest.mark.parametrize("name", ["copy", "pick", "finish"])
def test_conversations_are_lm_evals_to_the_last_bit(tmp_path, name, turns, more):
    tokenizer = character_tokenizer(bos=True)
    tokenizer.chat_template = CHAT
    model = Resident(random_llama(3, len(tokenizer), positions=256), tokenizer)
    shutil.copytree(ASSETS, tmp_path, dirs_exist_ok=True)
    file = tmp_path / f"{name}.yaml"
    file.write_text(file.read_text().replace("metadata:", f"{more}\nmetadata:"))
    shots = 0 if name == "finish" else 2
    theirs = lm_eval_samples(
        model,
        tmp_path,
        f"assets_{name}",
        batch_size=16,
        num_fewshot=shots,
        apply_chat_template=True,
        fewshot_as_multiturn=turns,
    )
    task = LmEvalTask(
        name,
        task=f"assets_{name}",
        path=tmp_path,
        batch_size=16,
        num_fewshot=shots,
        chat_template=True,
        fewshot_as_multiturn=turns,
    )
    ours = task.respond(model, task.items)
    score = [np.float32(sample[task.metric]) for sample in theirs]
    assert ours.columns["score"].tolist() == score
    asked = [r.args[0] for i in task.items for r in task.requests(i, tokenizer)]
    assert asked == [one[0] for s in theirs for one in s["arguments"]]
    assert all(text.startswith("<s>user: ") for text in asked)
    if ours.texts is not None:
        assert list(ours.texts) == [sample["filtered_resps"][0] for sample in theirs]
        assert len(set(ours.texts)) > 5


def test_a_conversation_is_another_task_and_needs_a_template(resident):
    plain, chat = asset("copy"), asset("copy", chat_template=True)
    turns = asset("copy", chat_template=True, fewshot_as_multiturn=True)
    assert len({plain.fingerprint, chat.fingerprint, turns.fingerprint}) == 3
    with pytest.raises(ConfigurationError, match="the tokenizer has no chat template"):
        chat.respond(resident, [0])


def test_two_tokenizers_have_two_conversations():
    first, second = character_tokenizer(), character_tokenizer()
    first.chat_template, second.chat_template = CHAT, CHAT.replace("assistant", "model")
    task = asset("copy", chat_template=True)
    module = random_llama(3, len(first))
    models = [Resident(module, first), Resident(module, second)]
    one, two = (task.respond(model, range(16)).texts for model in models)
    assert one != two
    assert task.requests(0, second)[0].args[0].endswith("model: ")
    assert asset("copy", chat_template=True).respond(models[1], range(16)).texts == two


@pytest.mark.parametrize(("name", "metric"), [("pick", "acc"), ("finish", "perplexity")])
def test_what_is_better_can_be_turned(resident, name, metric):
    usual = asset(name, metric=metric)
    told = metric == "acc"
    same = asset(name, metric=metric, higher_is_better=told)
    turned = asset(name, metric=metric, higher_is_better=not told)
    scores = [task.respond(resident, range(40)).columns["score"] for task in (usual, same, turned)]
    assert scores[0].tolist() == scores[1].tolist() == (-scores[2]).tolist()
    assert usual.fingerprint == same.fingerprint != turned.fingerprint


@pytest.mark.parametrize("name", ["copy", "pick", "finish"])
def test_other_batches_change_nothing_but_last_bits(resident, name):
    whole = asset(name, batch_size=64).respond(resident, range(40))
    chosen = [31, 2, 17, 5, 38, 0]
    part = asset(name, batch_size=4).respond(resident, chosen)
    assert part.items.tolist() == chosen
    assert part.columns.keys() == whole.columns.keys()
    for column, values in part.columns.items():
        exact = column in ("score", "choice") and name != "finish"
        np.testing.assert_allclose(
            values, whole.columns[column][chosen], rtol=0, atol=0 if exact else 1e-4
        )
    if whole.texts is not None:
        assert part.texts == tuple(whole.texts[item] for item in chosen)


@pytest.mark.parametrize(
    "name",
    [
        "sort",
        "sort_choice",
        pytest.param("back", marks=pytest.mark.slow),
        pytest.param("rot", marks=pytest.mark.slow),
    ],
)
def test_the_tiny_tasks_are_lm_evals(tiny_zoo: Path, name):
    folder = catalogue_folder("fitness") / "tasks" / "tiny"
    model = Resident(
        AutoModelForCausalLM.from_pretrained(tiny_zoo / "sort"),
        AutoTokenizer.from_pretrained(tiny_zoo / "sort"),
    )
    theirs = lm_eval_samples(model, folder, f"evomerge_tiny_{name}", batch_size=48, limit=64)
    task = LmEvalTask(name, task=f"evomerge_tiny_{name}", path=folder, batch_size=48, limit=64)
    ours = task.respond(model, task.items)
    assert ours.columns["score"].tolist() == [sample[task.metric] for sample in theirs]
    if ours.texts is not None:
        assert list(ours.texts) == [sample["filtered_resps"][0] for sample in theirs]


# --- what is promised beside ----------------------------------------------------------------------


def test_answers_do_not_depend_on_what_was_asked_before(resident):
    task = asset("copy", batch_size=8)
    first = task.respond(resident, [3, 1, 2])
    task.respond(Resident(random_llama(4, 70), resident.tokenizer), range(40))
    again = task.respond(resident, [3, 1, 2])
    assert first.texts == again.texts
    assert task.respond(resident, []).columns["score"].shape == (0,)


def test_global_generators_are_left_alone(resident):
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    torch.manual_seed(1)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # noqa: NPY002
    for name in ("copy", "pick"):
        asset(name, num_fewshot=2).respond(resident, [0, 1])
    after = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # noqa: NPY002
    assert before == after


def test_nothing_is_printed(capfd):
    tokenizer = character_tokenizer()
    tokenizer.model_max_length = 5  # transformers warns of longer texts
    for name, shots in (("copy", 2), ("read", 0), ("guess", 2)):
        asset(name, num_fewshot=shots).respond(Resident(random_llama(3, 70), tokenizer), [0])
    assert capfd.readouterr() == ("", "")


def answers_nothing(task: Any, model: Any) -> bool:
    """Whether all items fail, none of them well scored, and the candidate with them."""
    try:
        found = task.respond(model, task.items)
    except CandidateError as error:
        return "not finite" in str(error)
    known = Measurements({task.name: len(task.items)})
    known.add("broken", found)
    return (
        all("not finite" in found.failures[item] for item in task.items)
        and bool((found.columns["score"] == task.worst).all())
        and not known.can_answer("broken", {task.name: tuple(task.items)})
    )


@pytest.mark.parametrize("name", ["copy", "pick", "finish"])
def test_a_broken_model_is_a_failure_and_not_a_champion(name):
    tokenizer = character_tokenizer()
    broken = random_llama(3, len(tokenizer))
    with torch.no_grad():
        broken.model.norm.weight.fill_(float("nan"))
    assert answers_nothing(asset(name), Resident(broken, tokenizer))


def test_forward_seconds_are_counted_and_reset(resident):
    task = asset("copy")
    task.respond(resident, task.items)
    assert task.forward_s > 0
    task.forward_s = 0.0
    assert task.forward_s == 0.0


def test_the_fingerprint_follows_what_is_asked_and_nothing_else(tmp_path):
    for name in ("copy.yaml", "copy.json", "copy_shots.json"):
        (tmp_path / name).write_text((ASSETS / name).read_text())
    here = asset("copy").fingerprint
    assert LmEvalTask("other name", task="assets_copy", path=tmp_path).fingerprint == here
    lines = (tmp_path / "copy.json").read_text().splitlines()
    (tmp_path / "copy.json").write_text("\n".join(lines[:-1]))
    others = {
        LmEvalTask("copy", task="assets_copy", path=tmp_path).fingerprint,
        asset("copy", batch_size=4).fingerprint,
        asset("copy", num_fewshot=2).fingerprint,
        asset("pick").fingerprint,
        asset("pick", metric="acc_norm").fingerprint,
    }
    assert len(others | {here}) == 6


SCORED = """
import math
from operator import add

LEAST = 2

def helper(doc, results):
    return float(len(results[0]) >= LEAST)

def scored(doc, results):
    return {"exact_match": helper(doc, results)}

def alone(doc, results):
    return {"exact_match": float(math.floor(add(len(results[0]), 0)) >= 2)}
"""
CLASS = """
from lm_eval.api.task import ConfigurableTask

class Own(ConfigurableTask):
    def __init__(self, config=None):
        super().__init__(config={k: v for k, v in config.items() if k != "class"})
    def process_results(self, doc, results):
        return {"exact_match": helper(results)}

def helper(results):
    return 1.0
"""


def test_the_fingerprint_follows_what_a_tasks_functions_call(tmp_path):
    for name in ("copy.yaml", "copy.json", "copy_shots.json"):
        (tmp_path / name).write_text((ASSETS / name).read_text())

    def fingerprint(text: str, key: str, value: str) -> str:
        (tmp_path / "scoring.py").write_text(text)
        (tmp_path / "own.yaml").write_text(
            f"include: copy.yaml\ntask: own\n{key}: !function scoring.{value}\n"
        )
        task = LmEvalTask("t", task="own", path=tmp_path / "own.yaml", allow_code=True)
        return task.fingerprint

    calls, alone = (fingerprint(SCORED, "process_results", f) for f in ("scored", "alone"))
    assert fingerprint(SCORED, "process_results", "scored") == calls
    for old, new in ((">= LEAST", "> LEAST"), ("LEAST = 2", "LEAST = 3")):
        changed = SCORED.replace(old, new)
        assert fingerprint(changed, "process_results", "scored") != calls
        assert fingerprint(changed, "process_results", "alone") == alone
    made = fingerprint(CLASS, "class", "Own")
    assert fingerprint(CLASS.replace("1.0", "0.0"), "class", "Own") != made


# Of before the code of helpers counted: runs of such tasks go on.
RECORDED = {
    "copy": "0922fdcc1523a3e8b18484ea8d941f61ad324b5e049ecba19b99a8200c00dc35",
    "pick": "37198d2b7c8efe771542d1721af9712ff85133ebf558a4b49836ae606a59b783",
    "code": "78e4e022bfa21a26e61bfd4d2c8a43f530f68001c25b415c5a28bda0b11aef87",
}


@pytest.mark.parametrize("name", RECORDED)
def test_fingerprints_of_tasks_without_helpers_are_those_of_recorded_runs(name):
    assert asset(name, allow_code=True).fingerprint == RECORDED[name]


@pytest.mark.parametrize("of", [False, True])
def test_the_chat_template_is_part_of_what_a_run_is(tiny_zoo, tmp_path, of):
    """It stands beside the tensors, whose digest it does not change."""
    base = tmp_path / "base"
    shutil.copytree(tiny_zoo / "base", base)

    def identity(template: str, **options: Any) -> dict[str, Any]:
        (base / "chat_template.jinja").write_text(template)
        entry = {"task": "assets_copy", "path": str(ASSETS), **options}
        lent = {"t": entry, "sure": {"kind": "entropy", "of": "t"}}
        config = {
            "base": str(base),
            "experts": {name: str(tiny_zoo / name) for name in ("sort", "rot")},
            "space": "per_expert",
            "fitness": {
                "tasks": lent if of else {"t": entry},
                "objectives": {"mean": "sure" if of else "t"},
                "split": {"search": 4, "fresh": 2},
            },
            "searcher": {"kind": "random"},
            "budget": {"candidates": 2},
        }
        return wire(parse_experiment(Document(config))).identity

    other = CHAT.replace("assistant", "model")
    assert identity(CHAT, chat_template=True) == identity(CHAT, chat_template=True)
    assert identity(CHAT, chat_template=True) != identity(other, chat_template=True)
    assert identity(CHAT) == identity(other)
    assert "chat_template" not in identity(CHAT)


def test_a_limit_takes_the_first_items(resident):
    task = asset("copy", limit=5, num_fewshot=2)
    assert list(task.items) == [0, 1, 2, 3, 4]
    whole = asset("copy", num_fewshot=2, batch_size=5).respond(resident, range(5))
    assert task.respond(resident, range(5)).texts == whole.texts


def test_generation_ends_with_the_last_answer():
    tokenizer = character_tokenizer()
    model = random_llama(3, len(tokenizer))
    steps = []
    newline = tokenizer.convert_tokens_to_ids("\n")

    def always_a_new_line(module, args, output):
        steps.append(output.logits.shape)
        output.logits[:] = 0.0
        output.logits[..., newline] = 1.0

    model.register_forward_hook(always_a_new_line)
    answers = asset("copy", batch_size=40).respond(Resident(model, tokenizer), range(40))
    assert answers.texts == ("",) * 40
    assert len(steps) == 1


def test_lm_evals_own_registry_is_searched():
    message = refusal(task="hellaswag", path=None)
    assert "would run process_docs of" in message
    assert "offline" in refusal(task="arc_easy", path=None)


# --- what is refused ------------------------------------------------------------------------------


def refusal(**options: Any) -> str:
    with pytest.raises(ConfigurationError) as caught:
        LmEvalTask("mine", **({"path": ASSETS} | options))
    return str(caught.value)


def test_unknown_names_are_answered_with_the_nearest():
    assert "did you mean 'assets_copy'" in refusal(task="assets_cpoy")
    assert "did you mean 'acc_norm'" in refusal(task="assets_pick", metric="acc_nrom")
    assert "unknown filter 'strict'" in refusal(task="assets_pick", filter="strict")
    assert "no such file or folder" in refusal(task="x", path=ASSETS / "nowhere")


def test_code_runs_only_where_it_is_allowed():
    message = refusal(task="assets_code")
    assert "code.yaml:3 process_docs" in message
    assert "keep_half of" in message
    assert "code_here.py" in message
    assert len(asset("code", allow_code=True).items) == 20


def changed(folder: Path, old: str, new: str, name: str = "copy") -> dict[str, Any]:
    for data in (f"{name}.json", f"{name}_shots.json"):
        (folder / data).write_text((ASSETS / data).read_text())
    text = (ASSETS / f"{name}.yaml").read_text()
    assert old in text
    (folder / f"{name}.yaml").write_text(text.replace(old, new))
    return {"task": f"assets_{name}", "path": folder / f"{name}.yaml"}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("test: copy.json", "test: cpoy.json", "did you mean 'copy.json'"),
        ("do_sample: false", "temperature: 0.7", "would be sampled"),
        ("do_sample: false", "num_beams: 4", "not supported: num_beams: 4"),
        ("dataset_path: json", "dataset_path: someone/data", "offline"),
        ("metadata:", "num_fewshot: 0\nmetadata:", "fixed at 0"),
        ("metadata:", "repeats: 0\nmetadata:", "repeats: expected a whole number from 1, got 0"),
        ("max_gen_toks: 6", "max_gen_toks: 0", "max_gen_toks: expected a whole number from 1"),
        ("max_gen_toks: 6", "max_gen_toks: abc", "max_gen_toks: expected a whole number from 1"),
        ('until: ["\\n"]', "until: 5", "until: expected texts, got 5"),
        ("do_sample: false", "temperature: warm", "could not convert string to float: 'warm'"),
        ("task: assets_copy", "task: [assets_copy", "not valid YAML"),
    ],
)
def test_what_cannot_be_asked_is_refused_with_its_place(tmp_path, old, new, message):
    options = changed(tmp_path, old, new)
    text = refusal(**options, num_fewshot=2)
    assert message in text
    assert str(tmp_path) in text or "generation_kwargs" in text


def test_a_filter_that_cannot_be_made_is_refused():
    steps = [{"function": "regex", "regex_pattern": "("}, {"function": "take_first"}]
    message = refusal(
        task="assets_digits", overrides={"filter_list": [{"name": "f", "filter": steps}]}
    )
    assert "mine filter_list: 'f' cannot be made" in message
    assert "unterminated subpattern" in message


@pytest.mark.parametrize("aggregation", ["median", "nanmean", "perplexity", "!function own.agg"])
def test_what_is_no_mean_over_items_in_lm_eval_is_refused(resident, tmp_path, aggregation):
    old = "- metric: acc_norm\n    aggregation: mean"
    options = changed(tmp_path, old, old.replace("mean", aggregation), name="pick")
    (tmp_path / "own.py").write_text("def agg(items):\n    return max(items)\n")
    options["allow_code"] = True
    text = refusal(**options, metric="acc_norm")
    assert f"by {aggregation.split('.')[-1]!r}, and is no mean over items" in text
    assert LmEvalTask("t", **options).metric == "acc"
    overrides = {"metric_list": [{"metric": "acc_norm", "aggregation": "mean"}]}
    assert LmEvalTask("t", **options, overrides=overrides).metric == "acc_norm"


def test_a_metric_over_all_items_at_once_is_refused(tmp_path):
    options = changed(tmp_path, "metric: acc_norm", "metric: f1", name="pick")
    assert "all items at once" in refusal(**options, metric="f1")


def test_a_task_without_a_metric_of_its_type_is_refused(tmp_path):
    options = changed(tmp_path, "generate_until", "loglikelihood_rolling")
    assert "no metric that lm-eval computes for loglikelihood_rolling" in refusal(**options)


def test_answers_longer_than_the_model_are_refused(resident):
    short = Resident(random_llama(3, 70, positions=6), resident.tokenizer)
    with pytest.raises(ConfigurationError, match="leaves no room"):
        asset("copy").respond(short, [0])


BREAK_OUT = "{{{{ cycler.__init__.__globals__.os.system('touch {}') }}}}"


@pytest.mark.parametrize(
    ("field", "old"),
    [
        ("doc_to_text", 'doc_to_text: "{{question}}"'),
        ("doc_to_target", 'doc_to_target: "{{answer}}"'),
        ("doc_to_choice", "metadata:"),
        ("gen_prefix", "metadata:"),
        ("description", "metadata:"),
    ],
)
def test_templates_run_no_code(tmp_path, field, old):
    touched = tmp_path / "PWNED"
    template = f'{field}: "{BREAK_OUT.format(touched)}"'
    new = template if old.startswith(field) else f"{template}\n{old}"
    options = changed(tmp_path, old, new)
    message = refusal(**options)
    assert f"copy.yaml {field}: the template reaches out of its sandbox" in message
    assert "--allow-code" in message
    assert not touched.exists()


def test_a_template_that_breaks_out_late_is_refused_when_it_does(tmp_path, resident):
    touched = tmp_path / "PWNED"
    late = f"{{% if question[0] == 'z' %}}{BREAK_OUT.format(touched)}{{% endif %}}"
    options = changed(tmp_path, "{{question}}", late + "{{question}}")
    rows = (tmp_path / "copy.json").read_text().splitlines()
    (tmp_path / "copy.json").write_text("\n".join([*rows[:3], '{"question": "z=", "answer": "z"}']))
    task = LmEvalTask("mine", **options)
    with pytest.raises(ConfigurationError, match="doc_to_text: the template reaches out"):
        task.respond(resident, task.items)
    assert not touched.exists()


def test_lm_eval_gets_its_own_rendering_back(tmp_path):
    import lm_eval.utils

    before = lm_eval.utils.apply_template
    asset("copy", num_fewshot=2)
    refusal(**changed(tmp_path, "{{question}}", BREAK_OUT.format(tmp_path / "PWNED")))
    assert lm_eval.utils.apply_template is before


@pytest.mark.parametrize(
    "template",
    [
        "{{question}}\n",
        "{{ question | regex_replace('[a-m]', '.') | upper }}",
        "{% for c in question %}{{ loop.index }}{{ c.upper() }}{% endfor %}",
        "{% set ns = namespace(n=0) %}{% for c in answer %}{% set ns.n = ns.n + 2 %}{% endfor %}"
        "{{ ns.n }}",
        "{{ '%s-%s'|format(question, answer) }}{{ question.split('=')[0][::-1] }}",
    ],
)
def test_the_sandbox_renders_what_lm_eval_renders(template):
    from lm_eval.utils import apply_template

    from evomerge.fitness.lm_eval_guard import TemplateGuard

    document = {"question": "abc=", "answer": "cba"}
    guard = TemplateGuard(Path("x.yaml"), {"doc_to_text": template}, allow_code=False)
    assert guard.render(template, document) == apply_template(template, document)


SCRIPT = """
import datasets, evaluate, pathlib
pathlib.Path("{touched}").touch()
class Mine(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(description="", citation="", features=datasets.Features(
            {{"predictions": datasets.Value("string"), "references": datasets.Value("string")}}))
    def _compute(self, predictions, references):
        return {{"mine": 0.0}}
"""


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("metric: exact_match", "metric: {folder}/mine.py", "metric '{folder}/mine.py' is not one"),
        ("metric: exact_match", "metric: exact_macth", "did you mean 'exact_match'"),
        ("aggregation: mean", "aggregation: maen", "did you mean 'mean'"),
        ("higher_is_better: true", "hf_evaluate: true", "hf_evaluate: would run the script of"),
        ("metadata:", "use_prompt: {folder}/mine.yaml:a\nmetadata:", "use_prompt"),
        ("dataset_path: json", "dataset_path: pandas", "would unpickle"),
        (
            "metadata:",
            "filter_list: [{name: a, filter: [{function: take_frist}]}]\nmetadata:",
            "did you mean 'take_first'",
        ),
    ],
)
def test_names_from_outside_lm_eval_are_refused(tmp_path, old, new, message):
    touched = tmp_path / "PWNED"
    (tmp_path / "mine.py").write_text(SCRIPT.format(touched=touched))
    options = changed(tmp_path, old, new.replace("{folder}", str(tmp_path)))
    assert message.replace("{folder}", str(tmp_path)) in refusal(**options)
    assert not touched.exists()
