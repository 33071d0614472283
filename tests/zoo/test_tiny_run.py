import dataclasses
import hashlib
import itertools

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from evomerge.errors import ConfigurationError
from evomerge.zoo import check_reference, tiny_training
from evomerge.zoo import tiny as tiny_module
from evomerge.zoo import tiny_run as run_module
from evomerge.zoo.tiny import tiny
from evomerge.zoo.tiny_items import CHECKPOINTS, SKILLS, answer, prompt, task_inputs
from evomerge.zoo.tiny_run import RUN, shares, tiny_run
from evomerge.zoo.tiny_training import BASE, STAGES, encoded


def shortened(stages):
    return tuple(dataclasses.replace(stage, steps=2, warmup_steps=4) for stage in stages)


@pytest.fixture(scope="module")
def short():
    """Two small steps a checkpoint."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_module, "BASE", shortened((BASE,))[0])
        patch.setattr(run_module, "RUN", shortened(RUN))
        patch.setattr(tiny_module, "STAGES", shortened(STAGES))
        patch.setattr(tiny_training, "BATCH_SIZE", 8)
        yield


@pytest.fixture(scope="module")
def zoo(short, tmp_path_factory):
    return tiny_run(tmp_path_factory.mktemp("run") / "zoo", seed=5)


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def weights(folder):
    return {name: digest(folder / name / "model.safetensors") for name in ("base", *CHECKPOINTS)}


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(zoo, tmp_path):
    again, other = tiny_run(tmp_path / "again", seed=5), tiny_run(tmp_path / "other", seed=6)
    assert weights(again) == weights(zoo)
    assert len({*weights(zoo).values(), *weights(other).values()}) == 2 * 17
    assert {path.name for path in zoo.iterdir()} == {"base", *CHECKPOINTS, "zoo.json"}


def test_the_base_is_that_of_tiny(zoo, tmp_path):
    base = tiny(tmp_path / "tiny", seed=5) / "base"
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        assert digest(base / name) == digest(zoo / "base" / name)


def test_every_checkpoint_goes_on_from_the_one_before(zoo):
    """Two steps move a weight by twice the learning rate at most (Adam's bound), so c16 is far."""
    models = [load_file(zoo / n / "model.safetensors") for n in ("base", *CHECKPOINTS)]

    def moved(one, two):
        return max((two[key] - one[key]).abs().max().item() for key in one)

    steps = [moved(one, two) for one, two in itertools.pairwise(models)]
    assert 0 < steps[0] < 2.2 * 0.75e-3  # the warm-up's first two steps, a quarter and a half
    assert all(0 < step < 2.5 * RUN[0].learning_rate for step in steps)
    assert moved(models[0], models[-1]) > 4 * max(steps)


def test_the_mixture_moves_from_skill_to_skill():
    assert [shares(done) for done in (0, 0.5, 1)] == [
        {skill: float(skill == only) for skill in SKILLS} for only in SKILLS
    ]
    assert shares(0.25) == {"sort": 0.5, "back": 0.5, "rot": 0.0}
    for stage in RUN:
        assert sum(stage.weights.values()) == pytest.approx(1)
        assert max(stage.weights, key=lambda name: stage.weights[name]) in SKILLS
    assert [stage.name for stage in RUN] == list(CHECKPOINTS)


def test_references_and_cards(zoo):
    assert check_reference("zoo:tiny_run@3/c07") == ("tiny_run", 3, "c07")
    with pytest.raises(ConfigurationError, match="did you mean 'c07'"):
        check_reference("zoo:tiny_run/c7")
    assert "after 07 parts of the run" in (zoo / "c07" / "README.md").read_text()


# --- the real thing -------------------------------------------------------------------------------


def exact_match(model, skill, count=300):
    tokens = encoded([(prompt(skill, x), answer(skill, x)) for x in task_inputs(skill)[:count]])
    with torch.no_grad():
        said = model(input_ids=tokens[:, :-1]).logits[:, -6:].argmax(-1)
    return (said == tokens[:, -6:]).all(1).float().mean().item()


@pytest.mark.slow
def test_checkpoints_trade_skills_and_an_average_beats_them_all(tmp_path):
    zoo = tiny_run(tmp_path / "zoo", seed=1)
    models = {n: AutoModelForCausalLM.from_pretrained(zoo / n) for n in CHECKPOINTS}
    scores = {n: [exact_match(m, skill) for skill in SKILLS] for n, m in models.items()}
    assert scores["c05"][0] > scores["c16"][0] + 0.2  # sort is forgotten
    assert scores["c16"][2] > 0.9 > 0.1 > scores["c05"][2]  # rot is learnt late
    merged = AutoModelForCausalLM.from_pretrained(zoo / "base")
    parts = {"c04": 0.1, "c05": 0.1, "c12": 0.2, "c14": 0.3, "c16": 0.3}
    with torch.no_grad():
        for name, tensor in merged.named_parameters():
            tensor.copy_(sum(w * models[n].get_parameter(name) for n, w in parts.items()))
    best = max(map(sum, scores.values()))
    assert sum(exact_match(merged, skill) for skill in SKILLS) > best
