"""The oracles: lm-evaluation-harness's rolling log-likelihoods, and transformers' own loss."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from test_lm_eval_task import Resident, character_tokenizer, random_llama

from evomerge.errors import CandidateError, ConfigurationError
from evomerge.fitness import make_task
from evomerge.fitness.perplexity_task import PerplexityTask

POSITIONS = 24
TEXTS = ["abc", "a", "hello world " * 3, "x" * POSITIONS, "y" * (POSITIONS + 1), "0123456789" * 9]


@pytest.fixture(params=[False, True], ids=["no first token", "first token"])
def resident(request: pytest.FixtureRequest) -> Resident:
    tokenizer = character_tokenizer(bos=request.param)
    return Resident(random_llama(3, len(tokenizer), POSITIONS), tokenizer)


@pytest.fixture
def path(tmp_path: Path) -> str:
    file = tmp_path / "texts.jsonl"
    file.write_text("\n".join(json.dumps({"text": text}) for text in TEXTS))
    return str(file)


@pytest.mark.parametrize("max_length", [None, 10])
def test_log_likelihoods_are_lm_evals_with_texts_longer_than_the_model(resident, path, max_length):
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    theirs_lm = HFLM(resident.module, tokenizer=resident.tokenizer, batch_size=4)
    if max_length is not None:
        theirs_lm._max_length = max_length
    requests = [
        Instance("loglikelihood_rolling", {}, (text,), number) for number, text in enumerate(TEXTS)
    ]
    theirs = theirs_lm.loglikelihood_rolling(requests, disable_tqdm=True)
    task = PerplexityTask("p", path=path, max_length=max_length, batch_size=4)
    ours = task.respond(resident, task.items).columns
    np.testing.assert_allclose(ours["loglikelihood"], theirs, rtol=1e-5)
    assert ours["tokens"].tolist() == [len(text) for text in TEXTS]
    np.testing.assert_allclose(ours["score"], np.array(theirs) / ours["tokens"], rtol=1e-5)


def test_perplexity_is_transformers_loss(resident, path):
    task = PerplexityTask("p", path=path)
    first = resident.tokenizer.bos_token_id or resident.tokenizer.eos_token_id
    for item in (0, 1, 3):
        ids = torch.tensor([[first, *resident.tokenizer.encode(TEXTS[item])]])
        with torch.no_grad():
            loss = resident.module(ids, labels=ids).loss
        found = task.respond(resident, [item]).columns["score"]
        assert found.tolist() == pytest.approx([-float(loss)], rel=1e-5)


def test_lines_and_tables_are_read_alike(resident, tmp_path):
    (tmp_path / "t.txt").write_text("first line\n\nsecond\n")
    (tmp_path / "t.csv").write_text("body,n\nfirst line,1\nsecond,2\n")
    (tmp_path / "t.jsonl").write_text('{"body": "first line"}\n{"body": "second"}\n')
    found = [
        make_task("p", {"kind": "perplexity", "path": str(tmp_path / f"t.{end}"), **more})
        for end, more in (("txt", {}), ("csv", {"field": "body"}), ("jsonl", {"field": "body"}))
    ]
    assert len({task.fingerprint for task in found}) == 1
    scores = [task.respond(resident, [1, 0]).columns["score"].tolist() for task in found]
    assert scores[0] == scores[1] == scores[2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"path": "no.txt"}, r"no such file: no.txt \(did you mean 'a.txt'"),
        ({"path": "a.pdf"}, "valid: .txt, .jsonl, .csv"),
        ({"path": "b.jsonl"}, r"record 2: no text 'text' \(did you mean 'txt'"),
        ({"path": "c.jsonl"}, "c.jsonl:1: not valid JSON: Expecting .*, column 2"),
        ({"path": "empty.txt"}, "holds no texts"),
        ({"path": "a.txt", "max_length": 1}, "max_length"),
        ({"path": "a.txt", "fild": "x"}, "did you mean 'field'"),
    ],
)
def test_what_is_wrong_is_said(options, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("a.txt").write_text("a\n")
    Path("a.pdf").write_text("a\n")
    Path("empty.txt").write_text("\n")
    Path("b.jsonl").write_text('{"text": "a"}\n{"txt": "a"}\n')
    Path("c.jsonl").write_text("{\n")
    with pytest.raises(ConfigurationError, match=message):
        make_task("p", {"kind": "perplexity", **options})


def test_what_is_not_finite_has_no_worst_value_and_fails_the_candidate(resident, path):
    broken = random_llama(3, len(resident.tokenizer), POSITIONS)
    with torch.no_grad():
        broken.model.embed_tokens.weight[resident.tokenizer.encode("w")[-1]] = float("nan")
    task = PerplexityTask("p", path=path)
    with pytest.raises(CandidateError, match="item 2: the score is not finite"):
        task.respond(Resident(broken, resident.tokenizer), task.items)
