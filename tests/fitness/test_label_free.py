"""Entropy and KL to an expert, beside transformers' own passes, scipy's entropy, torch's kl_div."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import entropy
from test_lm_eval_task import ASSETS, Resident, character_tokenizer, random_llama
from torch.nn.functional import kl_div, log_softmax

from evomerge.documents import Document
from evomerge.errors import CandidateError, ConfigurationError
from evomerge.experiment.config import parse_experiment
from evomerge.experiment.run import run_experiment
from evomerge.experiment.score import score_model
from evomerge.experiment.wire import wire
from evomerge.files import catalogue_folder
from evomerge.fitness import make_task, teacher_kl_task, with_others
from evomerge.fitness.entropy_task import EntropyTask
from evomerge.fitness.generation import PromptPlan, StopRule
from evomerge.fitness.positions import PositionPlan
from evomerge.fitness.teacher_kl_task import TeacherKLTask
from evomerge.ledger import Ledger
from evomerge.pools.worker import Worker
from evomerge.records import Job
from evomerge.results.references import reference_recipes

PROMPTS = ["abc=", "hello world", "x", "one two three: ", "zz9="]


@dataclass
class Switched:
    """A resident model that holds the one that was written last."""

    models: dict[str, Any]
    tokenizer: Any
    module: Any = None
    writes: int = 0

    def write(self, name: str) -> None:
        self.module = self.models[name]
        self.writes += 1


@pytest.fixture
def family() -> Switched:
    tokenizer = character_tokenizer()
    size = len(tokenizer)
    models = {"teacher": random_llama(5, size), "other": random_llama(6, size)}
    with torch.no_grad():  # so that answers end, some before others
        models["teacher"].lm_head.weight[tokenizer.eos_token_id] *= 2.5
    return Switched(models, tokenizer, models["other"])


@pytest.fixture
def prompts(tmp_path: Path) -> str:
    path = tmp_path / "prompts.jsonl"
    path.write_text(
        "".join(json.dumps({"prompt": prompt, "answer": "?"}) + "\n" for prompt in PROMPTS)
    )
    return str(path)


def answer_of(module: Any, tokenizer: Any, prompt: str, tokens: int) -> tuple[list[int], list[int]]:
    """Prompt and greedy answer with the token that ends it, by transformers' `generate`."""
    ids = tokenizer.encode(prompt, return_tensors="pt")
    made = module.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=tokens,
        do_sample=False,
        pad_token_id=0,
    )
    return ids[0].tolist(), made[0, ids.shape[1] :].tolist()


def log_p(module: Any, prompt: list[int], answer: list[int]) -> torch.Tensor:
    """(answer, vocabulary): what is said before each token of the answer."""
    with torch.no_grad():
        logits = module(torch.tensor([prompt + answer])).logits[0]
    return log_softmax(logits[len(prompt) - 1 : -1].double(), -1)


@pytest.mark.parametrize("tokens", [1, 6])
@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_entropy_is_scipys(family, prompts, tokens, batch_size):
    task = EntropyTask("e", path=prompts, tokens=tokens, batch_size=batch_size)
    found = task.respond(family, [3, 0, 1, 2])
    for place, item in enumerate([3, 0, 1, 2]):
        answer = answer_of(family.module, family.tokenizer, PROMPTS[item], tokens)
        theirs = entropy(log_p(family.module, *answer).exp().numpy(), axis=-1)
        assert found.columns["positions"][place] == len(theirs)
        assert found.columns["score"][place] == pytest.approx(-theirs.mean(), abs=1e-5)


@pytest.mark.parametrize("tokens", [1, 3, 8])
@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_the_divergence_is_torchs_over_the_teachers_own_answer(family, prompts, tokens, batch_size):
    task = TeacherKLTask("k", teacher="teacher", path=prompts, tokens=tokens, batch_size=batch_size)
    task.prepare(family, family.write)
    family.write("other")
    found = task.respond(family, [4, 1, 0])
    lengths = set()
    for place, item in enumerate([4, 1, 0]):
        prompt, answer = answer_of(
            family.models["teacher"], family.tokenizer, PROMPTS[item], tokens
        )
        lengths.add(len(answer))
        p, q = (log_p(family.models[name], prompt, answer) for name in ("teacher", "other"))
        theirs = kl_div(q, p, reduction="none", log_target=True).sum(-1)
        assert found.columns["score"][place] == pytest.approx(-float(theirs.mean()), abs=1e-4)
        agreed = (q.argmax(-1) == torch.tensor(answer)).double().mean()
        assert found.columns["agreement"][place] == pytest.approx(float(agreed))
        assert found.columns["positions"][place] == len(answer)
    assert tokens < 8 or len(lengths) > 1  # some answers end by themselves


def test_the_teacher_is_at_no_distance_from_itself_and_asked_once(family, prompts):
    task = TeacherKLTask("k", teacher="teacher", path=prompts)
    task.prepare(family, family.write)
    for _ in range(3):
        found = task.respond(family, task.items)
        np.testing.assert_allclose(found.columns["score"], 0, atol=1e-5)
        assert (found.columns["agreement"] == 1).all()
    assert family.writes == 1


def test_an_answer_ends_where_the_teacher_ends_it(family, prompts):
    """The distribution from which the end was chosen counts; what would follow does not."""
    text = family.tokenizer.decode(
        answer_of(family.models["teacher"], family.tokenizer, PROMPTS[1], 8)[1][:3]
    )
    assert len(text) >= 2
    task = TeacherKLTask("k", teacher="teacher", path=prompts, until=[text[1]])
    task.prepare(family, family.write)
    assert task.respond(family, [1]).columns["positions"].tolist() == [1.0 + text.index(text[1])]


@pytest.mark.parametrize("top", [1, 5, 200])
def test_of_a_large_vocabulary_the_rest_counts_as_one_token(family, prompts, top, monkeypatch):
    exact = TeacherKLTask("k", teacher="teacher", path=prompts, tokens=4)
    exact.prepare(family, family.write)
    monkeypatch.setattr(teacher_kl_task, "EXACT_VOCABULARY", 10)
    rough = TeacherKLTask("k", teacher="teacher", path=prompts, tokens=4, top=top)
    rough.prepare(family, family.write)
    family.write("other")
    whole, part = (-t.respond(family, [1]).columns["score"][0] for t in (exact, rough))
    prompt, answer = answer_of(family.models["teacher"], family.tokenizer, PROMPTS[1], 4)
    p, q = (log_p(family.models[n], prompt, answer).exp().numpy() for n in ("teacher", "other"))
    divergences = []
    for row, other in zip(p, q, strict=True):
        order = np.argsort(-row)[: min(top, len(row) - 1)]
        lumped = [np.append(r[order], 1 - r[order].sum()) for r in (row, other)]
        divergences.append(entropy(*lumped))
    assert part == pytest.approx(np.mean(divergences), abs=1e-4)
    assert part <= whole + 1e-5
    if top == 200:
        assert part == pytest.approx(whole, abs=1e-5)


@pytest.mark.parametrize(
    ("kind", "tokens", "planned"),  # what the second and third candidate have made anew
    [("entropy", 1, []), ("entropy", 3, ["PositionPlan"] * 2), ("teacher_kl", 3, [])],
)
def test_what_depends_on_no_candidate_is_made_once(
    family, prompts, kind, tokens, planned, monkeypatch
):
    options = {"teacher": "teacher"} if kind == "teacher_kl" else {}
    task: Any = make_task("t", {"kind": kind, "path": prompts, "tokens": tokens, **options})
    if kind == "teacher_kl":
        task.prepare(family, family.write)
    family.write("other")
    first = task.respond(family, [0, 2, 1]).columns["score"].tolist()
    made = []
    for planner in (StopRule, PromptPlan, PositionPlan):

        def note(*args: Any, _name: str = planner.__name__, _make: Any = planner.__init__) -> None:
            made.append(_name)
            _make(*args)

        monkeypatch.setattr(planner, "__init__", note)
    calls: list[str] = []
    encode = family.tokenizer.encode
    monkeypatch.setattr(
        family.tokenizer, "encode", lambda t, **o: calls.append(t) or encode(t, **o)
    )
    family.write("teacher")
    task.respond(family, [0, 2, 1])
    family.write("other")
    assert task.respond(family, [0, 2, 1]).columns["score"].tolist() == first
    assert made == planned
    assert calls == []
    task.respond(family, [1, 3])  # other items are planned anew
    assert len(made) > len(planned)


def test_another_tokenizer_is_asked_anew(prompts):
    task: Any = make_task("t", {"kind": "entropy", "path": prompts, "tokens": 3})
    for bos in (False, True):
        tokenizer = character_tokenizer(bos)
        model = Resident(random_llama(6, len(tokenizer)), tokenizer)
        fresh: Any = make_task("t", {"kind": "entropy", "path": prompts, "tokens": 3})
        expected = fresh.respond(model, [0, 1]).columns["score"].tolist()
        assert task.respond(model, [0, 1]).columns["score"].tolist() == expected


@pytest.mark.parametrize("kind", ["entropy", "teacher_kl"])
def test_a_broken_model_fails(family, prompts, kind):
    options = {"teacher": "teacher"} if kind == "teacher_kl" else {"tokens": 3}
    task: Any = make_task("t", {"kind": kind, "path": prompts, **options})
    if kind == "teacher_kl":
        task.prepare(family, family.write)
    broken = random_llama(6, len(family.tokenizer))
    with torch.no_grad():
        broken.model.norm.weight.fill_(float("nan"))
    with pytest.raises(CandidateError, match="not finite"):
        task.respond(Resident(broken, family.tokenizer), [0, 1])


def test_prompts_may_be_those_of_a_task_of_lm_eval(family):
    entries = {
        "copy": {"task": "assets_copy", "path": str(ASSETS)},
        "like": {"kind": "teacher_kl", "teacher": "teacher", "of": "copy", "limit": 5},
    }
    resolved = with_others(entries, {"like"})
    assert list(resolved) == ["like"]  # nobody is asked for the labels
    assert list(with_others(entries, {"like", "copy"})) == ["copy", "like"]
    task: Any = make_task("like", resolved["like"])
    source: Any = make_task("copy", entries["copy"])
    assert list(task.items) == [0, 1, 2, 3, 4]
    for item in task.items:
        theirs = source.requests(item, family.tokenizer)[0].args[0]
        assert task.prompts.prompt(item, family.tokenizer) == theirs
    assert task.until == source.settings.until
    shorter: Any = make_task("like", {**resolved["like"], "limit": 4})
    assert shorter.fingerprint != task.fingerprint


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"kind": "entropy"}, "needs either `path`"),
        ({"kind": "entropy", "path": "p.txt", "of": "copy"}, "needs either `path`"),
        ({"kind": "entropy", "path": "nowhere.txt"}, "no such file"),
        ({"kind": "teacher_kl", "path": "p.txt"}, "teacher"),
        ({"kind": "entropy", "path": "p.txt", "tokens": 0}, "tokens"),
    ],
)
def test_what_is_wrong_is_said(entry, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("p.txt").write_text("a prompt\n")
    with pytest.raises(ConfigurationError, match=message):
        make_task("t", entry)


def test_the_task_whose_prompts_are_wanted_has_to_be_there():
    entries = {"copy": {"task": "c"}, "one": {"kind": "entropy", "of": "cpoy"}}
    with pytest.raises(
        ConfigurationError, match=r"task one of: no task 'cpoy' \(did you mean 'copy'"
    ):
        with_others(entries, {"one"})
    entries = {"one": {"kind": "entropy", "of": "two"}, "two": {"kind": "entropy", "of": "one"}}
    with pytest.raises(ConfigurationError, match="uses the prompts of another task itself"):
        with_others(entries, {"one"})


def test_code_that_is_allowed_is_allowed_where_prompts_are_lent() -> None:
    entries = {
        "source": {"task": "assets_code", "path": str(ASSETS / "code.yaml")},
        "sure": {"kind": "entropy", "of": "source"},
    }
    entry = with_others(entries, {"sure"})["sure"]
    with pytest.raises(ConfigurationError, match="--allow-code"):
        make_task("sure", entry)
    assert len(make_task("sure", {**entry, "allow_code": True}).items) > 0


# --- in a search ----------------------------------------------------------------------------------


def experiment(teacher: str = "sort", tokens: int = 8, **more: Any) -> Document:
    path = str(catalogue_folder("fitness") / "tasks/tiny/sort.jsonl")
    entry = {"kind": "teacher_kl", "teacher": teacher, "path": path, "limit": 24, "tokens": tokens}
    return Document(
        {
            "base": "zoo:tiny/base",
            "experts": {name: f"zoo:tiny/{name}" for name in ("sort", "rot")},
            "space": "per_expert",
            "fitness": {
                "tasks": {"like_sort": entry},
                "objectives": {"near": "like_sort"},
                "split": {"search": 12, "fresh": 4, "holdout": 8},
                "finalists": 2,
            },
            "searcher": {"kind": "random"},
            "budget": {"candidates": 6},
            "cohort": 3,
            **more,
        }
    )


def test_a_worker_asks_the_teacher_first_and_candidates_alike_ever_after(tiny_zoo):
    parts = wire(parse_experiment(experiment()))
    recipes = reference_recipes(parts.template)
    worker = Worker(parts.worker, "driver")

    def scores(label: str, by: Worker = worker) -> list[float]:
        (responses,) = by.run(Job(0, 0, recipes[label], {"like_sort": tuple(range(12))})).responses
        return [float(score) for score in responses.columns["score"]]

    first = scores("uniform")
    np.testing.assert_allclose(scores("sort"), 0, atol=1e-5)
    assert np.mean(scores("rot")) < np.mean(first) < 0
    assert scores("uniform") == first
    assert scores("uniform", Worker(parts.worker, "another")) == first


def test_processes_find_what_the_driver_finds(tiny_zoo, tmp_path):
    digests = set()
    for workers in (0, 2):
        config = parse_experiment(experiment(pool={"workers": workers}))
        folder = run_experiment(config, tmp_path / str(workers))
        ledger = Ledger(folder / "ledger.sqlite", read_only=True)
        digests.add(ledger.digest())
        final = ledger.final()
        assert final is not None
        assert final["references"]["sort"]["holdout"]["near"]["value"] == pytest.approx(0, abs=1e-5)
        ledger.close()
    assert len(digests) == 1


def test_a_teacher_has_to_be_a_model_of_the_run(tiny_zoo, tmp_path):
    with pytest.raises(
        ConfigurationError, match=r"like_sort teacher: no model 'srot' \(did you mean"
    ):
        wire(parse_experiment(experiment("srot")))
    fitness = tmp_path / "fitness.yaml"
    fitness.write_text(json.dumps(experiment().data["fitness"]))
    with pytest.raises(ConfigurationError, match=r"no model 'sort' \(valid: base\)"):
        score_model("zoo:tiny/rot", str(fitness))


def test_answers_that_the_model_has_no_room_for_are_refused_before_the_search(tiny_zoo):
    with pytest.raises(
        ConfigurationError, match="task like_sort: needs at least 61 positions, the model has 48"
    ):
        wire(parse_experiment(experiment(tokens=60)))
    wire(parse_experiment(experiment(tokens=47)))
