"""Latency: what is timed, and that it says that it is not the same twice."""

from __future__ import annotations

import time
from importlib import import_module
from typing import Any

import pytest
import torch
import yaml
from test_lm_eval_task import Resident, character_tokenizer, random_llama

from evomerge.errors import CandidateError, ConfigurationError
from evomerge.experiment.score import score_model
from evomerge.fitness import TASKS, make_task
from evomerge.fitness.latency_task import LatencyTask


def slowed(seconds: float) -> tuple[Resident, list[int]]:
    """A model whose every pass takes so much longer, and the lengths that it was given."""
    tokenizer = character_tokenizer()
    module = random_llama(3, len(tokenizer))
    lengths: list[int] = []

    def hook(_module: Any, args: tuple[torch.Tensor, ...]) -> None:
        lengths.append(args[0].shape[1])
        time.sleep(seconds)

    module.register_forward_pre_hook(hook)
    return Resident(module, tokenizer), lengths


def test_a_token_costs_a_pass_and_the_prompt_counts_apart():
    model, lengths = slowed(0.1)
    task = LatencyTask("l", prompt_tokens=7, new_tokens=3, repeats=2)
    found = task.respond(model, task.items).columns
    assert lengths == [7, 1, 1, 1] * 3  # once to warm up
    assert ((found["score"] < -0.1) & (found["score"] > -0.28)).all()
    assert ((found["prompt_s"] > 0.1) & (found["prompt_s"] < 0.28)).all()
    assert task.forward_s >= 2 * 4 * 0.1


def test_it_says_that_it_is_not_deterministic_and_no_other_does():
    assert not LatencyTask.deterministic
    assert LatencyTask("l", repeats=4).items == range(4)
    assert LatencyTask("l").fingerprint != LatencyTask("l", new_tokens=3).fingerprint
    made = {kind: getattr(import_module(e.module), e.name) for kind, e in TASKS.items()}
    unsure = [kind for kind, task in made.items() if not getattr(task, "deterministic", True)]
    told = [kind for kind, entry in TASKS.items() if "not the same twice" in entry.summary]
    assert unsure == told == ["latency"]


@pytest.mark.parametrize("where", ["model.norm", "lm_head", "model.layers.0.mlp.down_proj"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_broken_model_has_no_speed(where, value):
    tokenizer = character_tokenizer()
    module = random_llama(3, len(tokenizer))
    task = LatencyTask("l", prompt_tokens=4, new_tokens=2, repeats=1)
    assert task.respond(Resident(module, tokenizer), [0]).columns["score"] < 0
    with torch.no_grad():
        module.get_submodule(where).weight.fill_(value)
    with pytest.raises(CandidateError, match="a logit is not finite"):
        task.respond(Resident(module, tokenizer), [0])


def test_a_prompt_has_to_fit():
    tokenizer = character_tokenizer()
    model = Resident(random_llama(3, len(tokenizer), 16), tokenizer)
    with pytest.raises(ConfigurationError, match=r"10 \+ 8 tokens, the model has 16"):
        LatencyTask("l", prompt_tokens=10, new_tokens=8).respond(model, [0])
    with pytest.raises(ConfigurationError, match="repeats"):
        make_task("l", {"kind": "latency", "repeats": 0})


def test_a_prompt_that_does_not_fit_is_refused_before_a_model_is_asked(tiny_zoo, tmp_path):
    fitness = {
        "tasks": {"speed": {"kind": "latency", "prompt_tokens": 5000}},
        "objectives": {"speed": "speed"},
        "split": {"search": 1, "fresh": 1},
    }
    (tmp_path / "fitness.yaml").write_text(yaml.safe_dump(fitness))
    with pytest.raises(
        ConfigurationError, match="task speed: needs at least 5016 positions, the model has 48"
    ):
        score_model(str(tiny_zoo / "base"), str(tmp_path / "fitness.yaml"))
