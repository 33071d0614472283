"""Tasks of all types, beside `lm_eval.simple_evaluate` on the same model: items and aggregates."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_lm_eval_task import (
    ASSETS,
    CHAT,
    Resident,
    answers_nothing,
    asset,
    character_tokenizer,
    global_generators,  # noqa: F401 - a fixture
    lm_eval_results,
    log_likelihoods,
    random_llama,
)

from evomerge.errors import ConfigurationError
from evomerge.fitness.lm_eval_task import LmEvalTask

BATCH = 16


@dataclass(frozen=True)
class Case:
    """A task of the assets, and how it is asked."""

    task: str
    metric: str
    filter: str = "none"
    options: dict[str, Any] = field(default_factory=dict)  # ours and lm-eval's alike
    chat: bool = False

    def ours(self, **options: Any) -> LmEvalTask:
        chat = {"chat_template": True, "fewshot_as_multiturn": True} if self.chat else {}
        return asset(
            self.task,
            metric=self.metric,
            filter=self.filter,
            allow_code=True,
            **{"batch_size": BATCH, "shared_prefix": False} | self.options | chat | options,
        )

    def theirs(self, model: Resident, **options: Any) -> dict[str, Any]:
        chat = {"apply_chat_template": True, "fewshot_as_multiturn": True} if self.chat else {}
        name = f"assets_{self.task}"
        made = lm_eval_results(
            model, ASSETS, name, **{"batch_size": BATCH} | self.options | chat | options
        )
        samples = [s for s in made["samples"][name] if s["filter"] == self.filter]
        return {
            "samples": sorted(samples, key=lambda sample: sample["doc_id"]),
            "value": made["results"][name][f"{self.metric},{self.filter}"],
        }


SHOTS = {"num_fewshot": 2}
CASES = {
    "choices, few-shot": Case("pick", "acc", options=SHOTS),
    "choices, by their length": Case("pick", "acc_norm"),
    "choices, by their bytes": Case("guess", "acc_bytes"),
    "choices, mutual information": Case("guess", "acc_mutual_info"),
    "choices, one letter, chat": Case("letter", "acc", options=SHOTS, chat=True),
    "choices, before the same ending": Case("blank", "acc"),
    "log-likelihood": Case("finish", "perplexity"),
    "log-likelihood, chat": Case("finish", "acc", chat=True),
    "documents, words": Case("read", "word_perplexity"),
    "documents, bytes": Case("read", "byte_perplexity"),
    "documents, bits": Case("read", "bits_per_byte"),
    "documents, own code": Case("pages", "word_perplexity"),
    "generation, few-shot": Case("copy", "exact_match", options=SHOTS),
    "generation, chat": Case("copy", "exact_match", chat=True),
    "generation, first filter": Case("digits", "exact_match", "first letters"),
    "generation, last filter": Case("digits", "exact_match", "last letter"),
    "generation, own code": Case("code", "exact_match"),
}
EVERY = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


@pytest.fixture(scope="module")
def resident() -> Resident:
    tokenizer = character_tokenizer(bos=True)
    tokenizer.chat_template = CHAT
    return Resident(random_llama(3, len(tokenizer), positions=256), tokenizer)


def item_values(case: Case, samples: list[dict[str, Any]]) -> list[float]:
    """What lm-eval records of an item as one number: a log-likelihood where it has no other."""
    values = [sample[case.metric] for sample in samples]
    return [value[0] if isinstance(value, tuple) else float(value) for value in values]


def aggregated(case: Case, scores: np.ndarray) -> float:
    """lm-eval's aggregate, made of our scores."""
    mean = scores.astype(np.float64).mean()
    if case.metric == "bits_per_byte":
        return -mean
    return math.exp(-mean) if case.metric.endswith("perplexity") else mean


@EVERY
def test_items_and_aggregates_are_lm_evals(resident, case):
    theirs = case.theirs(resident)
    task = case.ours()
    ours = task.respond(resident, task.items)
    column = "loglikelihood" if task._share is not None else "score"
    expected = [np.float32(value) for value in item_values(case, theirs["samples"])]
    assert ours.columns[column].tolist() == expected
    told = [name for name in ours.columns if name != "score"]
    assert all(len(set(ours.columns[name].tolist())) > 1 for name in told)  # or nothing is shown
    assert aggregated(case, ours.columns["score"]) == pytest.approx(theirs["value"], rel=1e-6)
    if ours.texts is not None:
        assert list(ours.texts) == [sample["resps"][0][0] for sample in theirs["samples"]]
    elif "loglikelihood" in ours.columns and task._share is None:
        told = [log_likelihoods(sample)[0] for sample in theirs["samples"]]
        assert ours.columns["loglikelihood"].tolist() == told


@EVERY
def test_some_items_are_lm_evals_for_these_items(resident, case):
    chosen = [1, 3, 4, 8, 11]
    theirs = case.theirs(resident, samples={f"assets_{case.task}": chosen})
    task = case.ours()
    ours = task.respond(resident, chosen)
    column = "loglikelihood" if task._share is not None else "score"
    expected = [np.float32(value) for value in item_values(case, theirs["samples"])]
    assert ours.columns[column].tolist() == expected


@EVERY
@pytest.mark.parametrize("options", [{"batch_size": 3}, {"shared_prefix": True, "batch_size": 7}])
def test_other_rows_change_nothing_but_last_bits(resident, case, options):
    whole, other = case.ours(), case.ours(**options)
    expected = whole.respond(resident, whole.items)
    chosen = list(whole.items)[::-2]
    ours = other.respond(resident, chosen)
    assert ours.texts == (expected.texts and tuple(expected.texts[item] for item in chosen))
    assert ours.columns.keys() == expected.columns.keys()
    for name, values in ours.columns.items():
        likelihood = name in ("loglikelihood", "margin") or (
            name == "score" and case.metric.endswith(("perplexity", "byte"))
        )
        tolerance = 1e-4 if likelihood else 0
        scale = 3 if case.task in ("read", "pages") else 1  # a document is several windows
        np.testing.assert_allclose(
            values, expected.columns[name][chosen], rtol=0, atol=tolerance * scale
        )


@EVERY
@pytest.mark.parametrize("where", ["norm", "head"])
def test_a_broken_model_scores_nowhere(case, where):
    tokenizer = character_tokenizer(bos=True)
    tokenizer.chat_template = CHAT
    broken = random_llama(3, len(tokenizer), positions=256)
    with torch.no_grad():
        weight = broken.model.norm.weight if where == "norm" else broken.lm_head.weight
        weight.fill_(float("nan"))
    for shared in (False, None, True):
        assert answers_nothing(case.ours(shared_prefix=shared), Resident(broken, tokenizer))


# --- documents ------------------------------------------------------------------------------------


def test_the_mean_of_random_documents_is_that_of_all(resident):
    """Every document is in equally many pairs, so the mean over all pairs is that over all."""
    task = CASES["documents, words"].ours()
    scores = task.respond(resident, task.items).columns["score"].astype(np.float64)
    pairs = [(scores[i] + scores[j]) / 2 for i in task.items for j in task.items if i < j]
    assert np.mean(pairs) == pytest.approx(scores.mean(), rel=1e-12)


def test_long_documents_are_read_in_windows():
    tokenizer = character_tokenizer()
    case = Case("read", "byte_perplexity")
    for positions in (9, 64):
        model = Resident(random_llama(3, len(tokenizer), positions=positions), tokenizer)
        theirs = case.theirs(model)
        ours = case.ours().respond(model, range(24))
        expected = [np.float32(value) for value in item_values(case, theirs["samples"])]
        assert ours.columns["loglikelihood"].tolist() == expected


def test_a_document_needs_a_first_token():
    tokenizer = character_tokenizer()
    tokenizer.eos_token = None
    model = Resident(random_llama(3, 70), tokenizer)
    with pytest.raises(ConfigurationError, match="neither a first nor a last token"):
        asset("read").respond(model, [0])


# --- answers --------------------------------------------------------------------------------------


def test_lengths_and_names_of_answers(resident):
    task = CASES["generation, first filter"].ours()
    ours = task.respond(resident, task.items)
    theirs = CASES["generation, first filter"].theirs(resident)["samples"]
    filtered = [sample["filtered_resps"][0] for sample in theirs]
    names = ours.columns["answer"].tolist()
    assert len(set(filtered)) > 5
    for one, name in zip(filtered, names, strict=True):
        assert 0 <= name < 2**24
        assert {names[i] for i, other in enumerate(filtered) if other == one} == {name}
        assert int(name) == name
    assert len(set(names)) == len(set(filtered))
    lengths = ours.columns["length"]
    assert lengths.max() == 12
    assert (lengths >= [len(resident.tokenizer.tokenize(text)) for text in ours.texts]).all()


def test_answers_can_be_made_shorter(resident):
    whole, short = asset("copy", num_fewshot=2), asset("copy", num_fewshot=2, max_new_tokens=3)
    long = whole.respond(resident, whole.items)
    cut = short.respond(resident, short.items)
    assert cut.columns["length"].tolist() == long.columns["length"].clip(max=3).tolist()
    assert all(a.startswith(b) for a, b in zip(long.texts, cut.texts, strict=True))
    assert whole.fingerprint != short.fingerprint
    assert asset("copy", max_new_tokens=99).fingerprint == asset("copy").fingerprint


def test_an_answer_that_leaves_no_room_can_be_made_shorter():
    tokenizer = character_tokenizer()
    model = Resident(random_llama(3, 70, positions=6), tokenizer)
    with pytest.raises(ConfigurationError, match="`max_new_tokens` makes answers shorter"):
        asset("copy").respond(model, [0])
    assert asset("copy", max_new_tokens=2).respond(model, [0]).columns["length"][0] <= 2


def test_a_tasks_file_can_be_overridden(tmp_path: Path, resident):
    changed = asset("copy", overrides={"doc_to_text": "x{{question}}"})
    assert changed.requests(0, resident.tokenizer)[0].args[0].startswith("x")
    assert changed.fingerprint != asset("copy").fingerprint
