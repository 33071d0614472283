"""The oracles: the same sequences one by one, and lm-evaluation-harness."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from test_lm_eval_task import (
    ASSETS,
    Resident,
    answers_nothing,
    asset,
    character_tokenizer,
    global_generators,  # noqa: F401 - a fixture
    lm_eval_samples,
    random_llama,
)
from torch import nn

from evomerge.documents import Document
from evomerge.experiment.config import parse_experiment
from evomerge.fitness.likelihoods import log_likelihoods
from evomerge.fitness.shared_prefix import TokenTree, TreeProbe, TreeRows, attention_window
from evomerge.pools.worker import Worker, WorkerSpec
from evomerge.recipe import Merge, ModelSource, Recipe
from evomerge.records import Job

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "vocab_size": 70,
    "initializer_range": 0.4,
}
MODELS = {  # architecture -> its configuration, and whether it takes trees
    "Llama": (SIZES, True),
    "Qwen2": (SIZES, True),
    "Qwen3": (SIZES | {"head_dim": 8}, True),
    "Mistral": (SIZES | {"sliding_window": None}, True),
    "Gemma2": (SIZES | {"head_dim": 8, "sliding_window": 64, "final_logit_softcapping": 3.0}, True),
    "Cohere": (SIZES | {"logit_scale": 0.1}, True),
    "GPTNeoX": (SIZES, True),
    "GPT2": (
        {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128, "vocab_size": 70}
        | {"initializer_range": 0.4},
        True,
    ),
    "Mamba": ({"hidden_size": 32, "num_hidden_layers": 2, "vocab_size": 70}, False),
    "Bloom": ({"hidden_size": 32, "n_layer": 2, "n_head": 4, "vocab_size": 70}, False),
}


def made(name: str, attention: str = "sdpa", seed: int = 0) -> nn.Module:
    config = getattr(transformers, f"{name}Config")(**MODELS[name][0], bos_token_id=None)
    config._attn_implementation = attention
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return getattr(transformers, f"{name}ForCausalLM" if name != "GPT2" else "GPT2LMHeadModel")(
            config
        ).eval()


# --- trees ----------------------------------------------------------------------------------------


@given(
    st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=6).map(tuple), min_size=1, max_size=8)
)
def test_a_tree_is_its_sequences(sequences):
    tree = TokenTree.of(sequences)
    beginnings = {s[: i + 1] for s in sequences for i in range(len(s))}
    assert len(tree.tokens) == len(beginnings)  # each beginning stands once
    mask = TreeRows.of([tree]).inputs(nn.Module.__new__(_Nothing))["attention_mask"][0, 0] == 0
    for sequence, path in tree.paths.items():
        assert tuple(tree.tokens[i] for i in path) == sequence
        assert [tree.depths[i] for i in path] == list(range(len(path)))
        for length, node in enumerate(path, start=1):
            assert mask[node].nonzero().flatten().tolist() == sorted(path[:length])


class _Nothing(nn.Module):
    def parameters(self, recurse=True):
        return iter(())

    def forward(self, input_ids):
        raise NotImplementedError


# --- models ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "attention"),
    [
        *((name, "sdpa") for name in MODELS if name not in ("Gemma2", "Mamba", "Bloom")),
        *((name, "eager") for name in MODELS),
    ],
)
def test_every_architecture_answers_as_one_by_one(name, attention):
    model = Resident(made(name, attention), character_tokenizer())
    apart, together = (
        asset("pick", shared_prefix=shared).respond(model, range(40)).columns
        for shared in (False, True)
    )
    assert TreeProbe()(model.module) is MODELS[name][1]
    assert together["choice"].tolist() == apart["choice"].tolist()
    assert len(set(apart["choice"].tolist())) > 2
    np.testing.assert_allclose(together["margin"], apart["margin"], rtol=0, atol=1e-4)


def test_a_window_shorter_than_the_question_is_respected():
    """It is longer than what the probe asks, so that the question's length alone decides."""
    tokenizer = character_tokenizer()
    torch.manual_seed(0)
    config = transformers.MistralConfig(**SIZES, sliding_window=12)
    module = transformers.MistralForCausalLM(config).eval()
    assert attention_window(config) == 12
    assert TreeProbe()(module) is True
    model = Resident(module, tokenizer)
    apart, together = (
        asset("pick", shared_prefix=shared, num_fewshot=2).respond(model, range(40)).columns
        for shared in (False, True)
    )
    np.testing.assert_allclose(together["margin"], apart["margin"], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "window"),
    [
        ({"layer_types": ["full_attention", "linear_attention"]}, 0),
        ({"layer_types": ["full_attention", "sliding_attention"], "sliding_window": 9}, 9),
        ({"layer_types": ["full_attention"] * 2, "sliding_window": 9}, None),
        ({"sliding_window": 9, "use_sliding_window": False}, None),
        ({"sliding_window": 9}, 9),
        ({}, None),
    ],
)
def test_what_layers_look_back_on(options, window):
    config = transformers.PreTrainedConfig()
    for name, value in options.items():
        setattr(config, name, value)
    assert attention_window(config) == window


def test_a_module_that_ignores_masks_is_found_out():
    inner = made("Llama")

    class Ignores(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.config = inner, inner.config

        def forward(self, input_ids, attention_mask=None, position_ids=None):
            return self.inner(input_ids, position_ids=position_ids)

    class Fails(Ignores):
        def forward(self, input_ids, attention_mask=None, position_ids=None):
            assert attention_mask is None or attention_mask.ndim == 2
            return self.inner(input_ids)

    assert TreeProbe()(Ignores()) is False
    assert TreeProbe()(Fails()) is False
    assert TreeProbe()(inner) is True


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounding_is_not_taken_for_a_fault(dtype):
    for seed in range(3):
        assert TreeProbe()(made("Llama", seed=seed).to(dtype)) is True


def test_weights_that_show_nothing_decide_nothing():
    module = made("Llama")
    kept = {name: value.clone() for name, value in module.state_dict().items()}
    probe = TreeProbe()
    for broken in (float("nan"), 0.0):
        with torch.no_grad():
            for layer in module.model.layers:
                layer.self_attn.o_proj.weight.fill_(broken)
        assert probe(module) is False
    module.load_state_dict(kept)
    assert probe(module) is True
    with torch.no_grad():
        module.lm_head.weight.fill_(float("nan"))
    assert probe(module) is True  # it is the same code


# --- tasks ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def resident() -> Resident:
    tokenizer = character_tokenizer()
    return Resident(random_llama(3, len(tokenizer)), tokenizer)


@pytest.mark.parametrize("num_fewshot", [0, 2])
@pytest.mark.parametrize("metric", ["acc", "acc_norm"])
def test_shared_prefixes_answer_as_lm_eval(resident, metric, num_fewshot):
    theirs = lm_eval_samples(
        resident, ASSETS, "assets_pick", batch_size=16, num_fewshot=num_fewshot
    )
    task = asset("pick", metric=metric, shared_prefix=True, num_fewshot=num_fewshot, batch_size=5)
    ours = task.respond(resident, task.items)
    assert ours.columns["score"].tolist() == [sample[metric] for sample in theirs]


@pytest.mark.parametrize("positions", [12, 20])
def test_what_loses_its_beginning_still_answers_alike(positions):
    tokenizer = character_tokenizer()
    model = Resident(random_llama(3, len(tokenizer), positions=positions), tokenizer)
    apart, together = (
        asset("pick", shared_prefix=shared, num_fewshot=2).respond(model, range(40)).columns
        for shared in (False, True)
    )
    np.testing.assert_allclose(together["margin"], apart["margin"], rtol=0, atol=1e-4)
    assert together["choice"].tolist() == apart["choice"].tolist()


def test_sharing_is_chosen_where_it_saves(resident):
    def shares(**options):
        task = asset("pick", **options)
        run = task._run(resident.tokenizer, resident.module.config)
        return run._plan_for((0, 1))[0].depth > 0

    assert all([shares(), shares(num_fewshot=2), shares(shared_prefix=True)])
    assert not shares(shared_prefix=False)
    for shared in (None, True):  # one request an item: nothing is shared
        sums = asset("finish", shared_prefix=shared)
        run = sums._run(resident.tokenizer, resident.module.config)
        assert run._plan_for((0, 1))[0].depth == 0


def rows_of_the_head(resident, task):
    """How many positions the output head sees when all items are asked."""
    task.respond(resident, [0])  # the probe's forward passes too
    rows = []
    handle = resident.module.get_output_embeddings().register_forward_hook(
        lambda module, args, output: rows.append(output.shape[:2].numel())
    )
    task.respond(resident, task.items)
    handle.remove()
    return sum(rows)


def test_the_head_sees_scored_places_alone(resident):
    task = asset("pick", shared_prefix=True)
    run = task._run(resident.tokenizer, resident.module.config)
    (batch,) = run._plan(tuple(task.items), trees=True)[0].batches
    seen = rows_of_the_head(resident, task)
    assert seen == len(batch.positions) == len(set(batch.positions.tolist()))
    assert seen < batch.input_ids.numel() / 1.5


def test_single_tokens_cost_a_row_of_the_head_a_question(resident):
    choices = {"doc_to_choice": ["a", "b", "c"], "doc_to_target": "b"}
    task, exact = (asset("pick", overrides=choices, shared_prefix=s) for s in (None, False))
    assert rows_of_the_head(resident, task) == len(task.items)
    assert rows_of_the_head(resident, exact) > 5 * len(task.items)
    ours, theirs = (one.respond(resident, task.items).columns for one in (task, exact))
    assert ours["choice"].tolist() == theirs["choice"].tolist()
    np.testing.assert_allclose(ours["margin"], theirs["margin"], rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["Mamba", "Bloom"])
def test_models_that_fail_the_probe_keep_the_whole_head(name):
    model = Resident(made(name, "eager"), character_tokenizer())
    choices = {"doc_to_choice": ["a", "b", "c"], "doc_to_target": "b"}
    task, exact = (asset("pick", overrides=choices, shared_prefix=s) for s in (None, False))
    ours, theirs = (one.respond(model, task.items).columns for one in (task, exact))
    np.testing.assert_array_equal(ours["margin"], theirs["margin"])
    assert rows_of_the_head(model, task) == rows_of_the_head(model, exact) > 5 * len(task.items)


def test_sums_of_log_probabilities_hold_what_choices_share(resident):
    """Against one forward pass for each choice, read by hand."""
    task = asset("pick", shared_prefix=True)
    run = task._run(resident.tokenizer, resident.module.config)
    items = tuple(task.items[:10])
    plan = run._plan(items, trees=True)[0]
    sums, _ = log_likelihoods(resident.module, plan, task.clock)
    pairs = [pair for item in items for pair in run._encoded(item)]
    with torch.inference_mode():
        for (context, continuation), total in zip(pairs, sums, strict=True):
            logits = resident.module(torch.tensor([context + continuation])).logits[0]
            told = logits.log_softmax(-1)[len(context) - 1 : -1]
            expected = sum(told[i, token].item() for i, token in enumerate(continuation))
            assert total == pytest.approx(expected, abs=1e-4)


def test_sharing_is_part_of_what_a_task_is():
    prints = [asset("pick", shared_prefix=shared).fingerprint for shared in (None, False, True)]
    assert len(set(prints)) == 3
    assert len({asset("copy", shared_prefix=shared).fingerprint for shared in (None, False)}) == 1


def test_a_run_of_old_goes_on_without_sharing():
    """Its experiment does not have the key, and its items' fingerprint is that of `false`."""

    def identity(**options: bool) -> dict:
        data = {
            "base": "zoo:tiny/base",
            "experts": {"sort": "zoo:tiny/sort"},
            "space": "per_expert",
            "fitness": {"tasks": {"t": {"task": "x", **options}}, "objectives": {"t": "t"}},
            "searcher": {"kind": "random"},
            "budget": {"candidates": 1},
        }
        return parse_experiment(Document(data)).identity()

    assert identity() == identity(shared_prefix=False) == identity(shared_prefix=True)


def test_a_broken_model_fails_where_prefixes_are_shared():
    tokenizer = character_tokenizer()
    task = asset("pick", shared_prefix=True)
    module = random_llama(3, len(tokenizer))
    task.respond(Resident(module, tokenizer), [0, 1])  # the probe is passed
    with torch.no_grad():
        module.lm_head.weight.fill_(float("nan"))
    assert answers_nothing(task, Resident(module, tokenizer))


def test_the_candidates_that_a_worker_met_decide_nothing(tmp_path):
    """One in which the probe sees nothing is asked as all others are, first or not."""
    tokenizer = character_tokenizer()
    module = random_llama(3, len(tokenizer)).to(torch.bfloat16)
    with torch.no_grad():  # one that is 0 would be blown up by the norms
        module.model.embed_tokens.weight[0] = module.model.embed_tokens.weight[5]
    models = {name: str(tmp_path / name) for name in ("base", "other", "weak")}
    for number, folder in enumerate(models.values()):
        with torch.no_grad():
            for layer in module.model.layers:
                layer.self_attn.o_proj.weight.mul_((1, 0.9, 1e-3)[number])
        module.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    assert TreeProbe()(module) is False
    entry = {"task": "assets_pick", "path": str(ASSETS), "shared_prefix": True}
    prompts = tmp_path / "p.txt"
    prompts.write_text("a\n")
    teacher = {"kind": "teacher_kl", "teacher": "weak", "path": str(prompts)}
    spec = WorkerSpec(models, "base", {"teacher": teacher, "pick": entry})

    numbers = itertools.count()

    def margins(worker: Worker, name: str, *, ahead: bool = False) -> list[float]:
        recipe = Recipe(
            base="base",
            models={model: ModelSource(path=model) for model in models},
            default=Merge(operator="linear", sources=(name,), parameters={"weight": 1.0}),
        )
        job = Job(next(numbers), 0, recipe, {"pick": tuple(range(8))})
        if ahead:  # into the model that was not measured last
            worker.prepare(job)
        outcome = worker.run(job)
        (responses,) = outcome.responses
        return [float(value) for value in responses.columns["margin"]]

    fresh, used = Worker(spec, "fresh"), Worker(spec, "used")
    margins(used, "other")
    assert margins(fresh, "weak") == margins(used, "weak")
    two = Worker(replace(spec, ahead=True), "two")
    told = [margins(two, name, ahead=True) for name in ("weak", "other", "weak")]
    assert told[0] == told[2] == margins(fresh, "weak")  # whichever of its models it is in
    apart = Worker(replace(spec, tasks={"pick": {**entry, "shared_prefix": False}}), "apart")
    assert margins(apart, "weak") != margins(fresh, "weak")  # trees it was, by last bits
