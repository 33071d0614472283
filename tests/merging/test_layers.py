"""Layers repeated, left out, reordered and stacked from several models."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from tiny_states import merger_of
from torch import Tensor, nn

from evomerge.checkpoints.anatomy import anatomy_of
from evomerge.checkpoints.layer_stack import layer_kinds, stacked_config
from evomerge.checkpoints.open import open_checkpoint
from evomerge.errors import CandidateError, ConfigurationError
from evomerge.experiment.recipes import open_recipe_models, read_recipe
from evomerge.merging import OPERATORS
from evomerge.merging.materialise import Merger, check_recipe
from evomerge.merging.resident import Resident
from evomerge.recipe import Recipe
from evomerge.results.export import export_model

LAYERS = 3
MODELS = ("base", "a", "b")
PARTS = {"self_attn.q.weight": (4, 4), "mlp.up.weight": (6, 4), "norm.weight": (4,)}


def family() -> dict[str, dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(11)
    shapes = {"embed.weight": (11, 4), "head.weight": (3, 4)} | {
        f"layers.{i}.{part}": shape for i in range(LAYERS) for part, shape in PARTS.items()
    }
    return {
        model: {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
        | {f"layers.{i}.steps": torch.tensor([i]) for i in range(LAYERS)}
        for model in MODELS
    }


FAMILY = family()


def recipe_of(slots: Any, operator: str = "task_arithmetic", **changes: Any) -> Recipe:
    default = {"operator": operator, "parameters": changes.pop("parameters", {})}
    default["sources"] = changes.pop("sources", None)
    models = {name: name for name in MODELS}
    return Recipe.model_validate(
        {"base": "base", "models": models, "default": default, "slots": slots, **changes}
    )


def only(model: str, layer: int) -> dict[str, Any]:
    """A slot that is one model's layer."""
    return {"layer": layer, "merges": {"default": {"operator": "linear", "sources": [model]}}}


def restacked(state: dict[str, Tensor], layers: list[int]) -> dict[str, Tensor]:
    """By hand: a state dict whose layers are those of another one."""
    made = {name: tensor for name, tensor in state.items() if not name.startswith("layers.")}
    for slot, layer in enumerate(layers):
        prefix = f"layers.{layer}."
        for name, tensor in state.items():
            if name.startswith(prefix):
                made[f"layers.{slot}.{name.removeprefix(prefix)}"] = tensor
    return made


slots_lists = st.lists(st.integers(0, LAYERS - 1), min_size=1, max_size=6)


@given(slots_lists, st.data())
@settings(max_examples=30, deadline=None)
def test_merging_rearranged_layers_equals_merging_rearranged_models(
    layers: list[int], data: st.DataObject
) -> None:
    """The oracle: rearrange each model by hand first, then merge them as they stand."""
    given_by = {
        model: [data.draw(st.integers(0, LAYERS - 1)) for _ in layers] if model == "b" else layers
        for model in MODELS
    }
    slots = [
        {"layer": layer, "layers": {"b": b}} for layer, b in zip(layers, given_by["b"], strict=True)
    ]
    parameters = {"density": 0.5, "trim": "tensor"}
    merged = dict(merger_of(FAMILY).tensors(recipe_of(slots, "ties", parameters=parameters)))
    by_hand = {m: restacked(FAMILY[m], given_by[m]) for m in MODELS}
    expected = dict(merger_of(by_hand).tensors(recipe_of(None, "ties", parameters=parameters)))
    assert merged.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(merged[name], tensor, rtol=0, atol=1e-6)


def uneven() -> dict[str, dict[str, Tensor]]:
    """The family, of which "a" has two layers and "b" five."""
    generator = torch.Generator().manual_seed(12)
    grown = {
        f"layers.{i}.{part}": torch.randn(shape, generator=generator)
        for i in (3, 4)
        for part, shape in PARTS.items()
    } | {f"layers.{i}.steps": torch.tensor([i]) for i in (3, 4)}
    cut = {n: t for n, t in FAMILY["a"].items() if not n.startswith("layers.2.")}
    return {"base": FAMILY["base"], "a": cut, "b": FAMILY["b"] | grown}


UNEVEN = uneven()
PER_TENSOR = {"trim": "tensor", "density": 0.5}
uneven_slots = st.lists(
    st.tuples(st.integers(0, 2), st.integers(0, 1), st.integers(0, 4)), min_size=1, max_size=6
)


@given(uneven_slots, st.sampled_from(["task_arithmetic", "linear"]))
@settings(max_examples=40, deadline=None)
def test_models_of_other_depths_are_merged_as_their_rearranged_selves(
    chosen: list[tuple[int, int, int]], operator: str
) -> None:
    slots = [{"layer": base, "layers": {"a": a, "b": b}} for base, a, b in chosen]
    merged = dict(merger_of(UNEVEN).tensors(recipe_of(slots, operator)))
    alike = {
        model: restacked(UNEVEN[model], [layers[k] for layers in chosen])
        for k, model in enumerate(MODELS)
    }
    expected = dict(merger_of(alike).tensors(recipe_of(None, operator)))
    assert merged.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(merged[name], tensor), name


def test_large_tensors_of_models_of_other_depths(tmp_path: Path) -> None:
    """Those that are merged alone, read where they lie."""
    generator = torch.Generator().manual_seed(3)
    depths = {"base": 3, "a": 2, "b": 5}
    states = {
        model: {f"layers.{i}.w": torch.randn(600, 600, generator=generator) for i in range(depth)}
        for model, depth in depths.items()
    }
    slots = [{"layer": 2, "layers": {"a": 1, "b": 4}}, {"layer": 1, "layers": {"a": 0, "b": 3}}]
    merged = dict(merger_of(states).tensors(recipe_of(slots, "ties", parameters=PER_TENSOR)))
    chosen = {"base": [2, 1], "a": [1, 0], "b": [4, 3]}
    alike = {model: restacked(states[model], chosen[model]) for model in MODELS}
    plain = dict(merger_of(alike).tensors(recipe_of(None, "ties", parameters=PER_TENSOR)))
    assert all(torch.equal(merged[name], tensor) for name, tensor in plain.items())


@pytest.mark.parametrize(
    ("slots", "told"),
    [
        (None, "slot 2, a: there is no layer 2: a has 2, counted from 0"),
        ([{"layer": 2, "layers": {"b": 1}}], "slot 0, a: there is no layer 2: a has 2"),
        ([{"layer": 0, "layers": {"b": 5}}], "slots.0.layers.b: there is no layer 5: b has 5"),
        ([{"layer": 3, "layers": {"a": 0}}], "slots.0.layer: there is no layer 3: base has 3"),
    ],
)
def test_layers_that_a_shallower_model_has_not_are_told(slots: Any, told: str) -> None:
    merger = merger_of(UNEVEN)
    depths = {"base": 3, "a": 2, "b": 5}
    assert told in "\n".join(map(str, check_recipe(recipe_of(slots), merger.anatomy, depths)))
    if slots is not None:
        with pytest.raises(ConfigurationError):
            merger.plan(recipe_of(slots))


def test_a_layer_may_come_from_one_model_alone() -> None:
    slots = [only("a", 0), only("b", 0), only("a", 2), only("base", 1)]
    merged = dict(merger_of(FAMILY).tensors(recipe_of(slots)))
    for slot, (model, layer) in enumerate([("a", 0), ("b", 0), ("a", 2), ("base", 1)]):
        for part in PARTS:
            expected = FAMILY[model][f"layers.{layer}.{part}"]
            assert torch.equal(merged[f"layers.{slot}.{part}"], expected)
    copied = [int(merged[f"layers.{slot}.steps"]) for slot in range(4)]
    assert copied == [0, 0, 2, 1]  # integers are the base's, of the layer that stands there


def test_a_model_alone_is_merged_and_not_just_copied() -> None:
    states = {"base": FAMILY["base"]}
    recipe = Recipe.model_validate(
        {
            "base": "base",
            "models": {"base": "base"},
            "default": {"operator": "linear", "sources": ["base"]},
            "slots": [{"layer": 2}, {"layer": 2}],
            "tensors": {
                "layers.1.mlp.up.weight": {"parameters": {"weight": 0.5, "normalize": False}}
            },
        }
    )
    merged = dict(merger_of(states).tensors(recipe))
    up = FAMILY["base"]["layers.2.mlp.up.weight"]
    assert torch.equal(merged["layers.0.mlp.up.weight"], up)
    assert torch.equal(merged["layers.1.mlp.up.weight"], up * 0.5)


def test_slots_in_order_are_the_model_as_it_is() -> None:
    merger = merger_of(FAMILY)
    plain, spelt = recipe_of(None), recipe_of([{"layer": i} for i in range(LAYERS)])
    odd = recipe_of([{"layer": i, "layers": {"a": i}} for i in range(LAYERS)])
    assert list(merger.plan(plain)) == list(merger.plan(spelt)) == list(merger.plan(odd))


def test_a_tensor_may_have_a_merge_of_its_own() -> None:
    name = "layers.1.mlp.up.weight"
    tensors = {name: {"parameters": {"weight": {"a": 0.25, "b": 0.0}}}}
    slots = [{"layer": 0}, {"layer": 0}]
    recipe = recipe_of(slots, parameters={"weight": 0.0}, tensors=tensors)
    merger = merger_of(FAMILY)
    merged = dict(merger.tensors(recipe))
    base, a = (FAMILY[model]["layers.0.mlp.up.weight"] for model in ("base", "a"))
    torch.testing.assert_close(merged[name], base + 0.25 * (a - base))
    assert torch.equal(merged["layers.0.mlp.up.weight"], base)
    alone = torch.empty_like(base)
    merger.merge_tensor(recipe, name, alone)
    assert torch.equal(alone, merged[name])


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"slots": [{"layer": 3}]}, "slots.0.layer: there is no layer 3: base has 3"),
        ({"slots": [{"layer": 0, "layers": {"a": 7}}]}, "slots.0.layers.a: there is no layer 7"),
        ({"slots": []}, "slots: a model without layers"),
        ({"slots": [{"layer": 0}], "tensors": {"layers.1.mlp.up.weight": {}}}, "no such tensor"),
        ({"slots": None, "tensors": {"hed.weight": {}}}, "did you mean 'head.weight'"),
        ({"slots": None, "tensors": {"head.weight": {"operator": "tise"}}}, "tensors head.weight"),
    ],
)
def test_what_does_not_fit_is_told_with_its_place(changes: dict[str, Any], told: str) -> None:
    merger, recipe = merger_of(FAMILY), recipe_of(**changes)
    assert told in "\n".join(map(str, check_recipe(recipe, merger.anatomy)))
    with pytest.raises(ConfigurationError):
        merger.plan(recipe)


def test_a_whole_models_ranks_need_the_same_layer_of_base_and_source() -> None:
    recipe = recipe_of([{"layer": 0, "layers": {"a": 1}}], "ties")
    with pytest.raises(CandidateError, match="'a' gives another layer"):
        dict(merger_of(FAMILY).tensors(recipe))
    with pytest.raises(CandidateError, match="'b' has another number of layers"):
        dict(merger_of(UNEVEN).tensors(recipe_of([{"layer": 1}], "ties", sources=["b"])))
    repeated = recipe_of([{"layer": 1}, {"layer": 1}], "ties")
    merged = dict(merger_of(FAMILY).tensors(repeated))
    plain = dict(merger_of(FAMILY).tensors(recipe_of(None, "ties")))
    for slot in (0, 1):
        name = f"layers.{slot}.mlp.up.weight"
        assert torch.equal(merged[name], plain["layers.1.mlp.up.weight"])


def test_repeated_layers_have_random_masks_of_their_own() -> None:
    recipe = recipe_of([{"layer": 1}, {"layer": 1}], "dare_linear")
    merged = dict(merger_of(FAMILY).tensors(recipe))
    assert not torch.equal(merged["layers.0.mlp.up.weight"], merged["layers.1.mlp.up.weight"])
    slot = dict(merger_of(FAMILY).tensors(recipe_of(None, "dare_linear")))
    assert torch.equal(merged["layers.1.mlp.up.weight"], slot["layers.1.mlp.up.weight"])


# --- in memory ------------------------------------------------------------------------------------


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(4, 4)
        self.norm = nn.LayerNorm(4)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Block() for _ in range(LAYERS))
        self.head = nn.Linear(4, 2)


def opened_nets() -> dict[str, Any]:
    states = {}
    for seed, model in enumerate(MODELS):
        torch.manual_seed(seed)
        states[model] = open_checkpoint(Net().state_dict(), name=model)
    return states


def test_the_resident_model_holds_whatever_order_was_written_before() -> None:
    opened = opened_nets()
    resident = Resident.open(opened, "base", build=Net)
    fresh = Merger(opened, anatomy_of(opened["base"]), "base", 0)
    orders = [[2, 1, 0], [0, 1, 2], [2, 1, 0], [0, 0, 1], [0, 1, 2], None]
    for order in orders:
        recipe = recipe_of(order and [{"layer": i, "layers": {"a": order[0]}} for i in order])
        resident.write(recipe)
        state = resident.module.state_dict()
        for name, expected in fresh.tensors(recipe):
            assert torch.equal(state[name], expected), (order, name)


def test_only_the_slots_that_changed_are_written() -> None:
    resident = Resident.open(opened_nets(), "base", build=Net)
    per_layer = 4
    assert resident.write(recipe_of([{"layer": i} for i in (0, 1, 1)])) == 2 + 2 * per_layer
    assert resident.write(recipe_of([{"layer": i} for i in (0, 1, 1)])) == 0
    other = [only("base", 2), {"layer": 1, "layers": {"a": 0}}, {"layer": 1}]
    assert resident.write(recipe_of(other)) == 2 * per_layer
    same_again = [only("base", 2), {"layer": 1, "layers": {"b": 0}}, {"layer": 1}]
    assert resident.write(recipe_of(same_again)) == per_layer


def test_leaving_out_another_layer_moves_blocks_and_writes_nothing() -> None:
    resident = Resident.open(opened_nets(), "base", build=Net)
    resident.write(recipe_of([{"layer": 0}, {"layer": 1}]))
    assert resident.write(recipe_of([{"layer": 1}, {"layer": 2}])) == 4
    for layers in ([0, 2], [2, 1, 0], [1], [0, 1, 2, 1, 0, 2, 2]):
        assert resident.write(recipe_of([{"layer": i} for i in layers])) == 0
        assert len(resident.module.layers) == len(layers)
    assert resident.write(recipe_of(None)) == 14
    assert list(resident.module.layers) == [b.module for b in resident._stack._own]


@pytest.mark.parametrize(("operator", "prepared"), [("sce", 3), ("dare_linear", 3 + 1 + 2)])
def test_a_moved_layer_is_not_prepared_again(
    operator: str, prepared: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Draws are keyed by names, so those of DARE are its slot's own."""
    states = {
        model: {f"layers.{i}.w": torch.randn(600, 600) for i in range(LAYERS)} for model in MODELS
    }
    one, calls = OPERATORS[operator], []

    def counted(*given: Any) -> Any:
        calls.append(1)
        return one.prepare(*given)

    monkeypatch.setitem(OPERATORS, operator, replace(one, prepare=counted))
    merger = merger_of(states, cache_bytes=2**28)
    merged = {}
    for layers in ([0, 1, 2], [0, 2], [2, 1, 0]):
        slots = [{"layer": i} for i in layers]
        for slot, tensor in merger.tensors(recipe_of(slots, operator)):
            layer = layers[int(slot.split(".")[1])]
            if operator == "sce":
                assert torch.equal(merged.setdefault(layer, tensor), tensor)
    # Of [0, 2] the first layer stands where it stood; of [2, 1, 0] the second.
    assert len(calls) == prepared


def test_slots_that_hold_the_same_share_their_tensors() -> None:
    resident = Resident.open(opened_nets(), "base", build=Net)
    for operator, shared in (("task_arithmetic", True), ("ties", True), ("dare_linear", False)):
        parameters = {"trim": "tensor"} if operator == "ties" else {}
        resident.write(recipe_of([{"layer": 1}, {"layer": 1}], operator, parameters=parameters))
        first, second = resident.module.layers
        assert first is not second
        assert (first.up.weight.data_ptr() == second.up.weight.data_ptr()) == shared
    resident.write(recipe_of([{"layer": i} for i in (0, 0, 0, 1)], "dare_linear"))
    assert len(resident._stack._blocks) == 5
    resident.write(recipe_of([{"layer": 0}], "dare_linear"))
    assert len(resident._stack._blocks) == LAYERS, "copies that nobody needs are dropped"


def test_after_an_error_every_slot_is_written_again() -> None:
    resident = Resident.open(opened_nets(), "base", build=Net)
    slots = [{"layer": 1}, {"layer": 0}]
    good = recipe_of(slots, "linear")
    bad = recipe_of(slots, "linear", parameters={"weight": {"a": 1, "b": -1}})
    assert resident.write(good) == 10
    with pytest.raises(CandidateError):
        resident.write(bad)
    assert resident.write(good) == 10


# --- folders --------------------------------------------------------------------------------------


def folders(tmp_path: Path, kind: str, **settings: Any) -> dict[str, Any]:
    """A family of tiny transformers models of a class, as opened folders."""
    import transformers

    config_class = getattr(transformers, f"{kind}Config")
    model_class = getattr(transformers, settings.pop("model", f"{kind}ForCausalLM"))
    opened = {}
    for seed, name in enumerate(MODELS):
        torch.manual_seed(seed)
        model_class(config_class(**settings)).save_pretrained(tmp_path / name)
        opened[name] = open_checkpoint(tmp_path / name, name=name)
    return opened


GEMMA = {
    "vocab_size": 32, "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 4,
    "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 4,
}  # fmt: skip
GPT2 = {"vocab_size": 32, "n_embd": 8, "n_layer": 4, "n_head": 2, "n_positions": 16}


@pytest.mark.parametrize(
    ("kind", "settings", "count"),
    [
        ("Gemma2", GEMMA, "num_hidden_layers"),
        ("GPT2", {**GPT2, "model": "GPT2LMHeadModel"}, "n_layer"),
    ],
)
def test_an_exported_stack_is_the_model_with_its_blocks_rearranged(
    tmp_path: Path, kind: str, settings: dict[str, Any], count: str
) -> None:
    """The oracle: transformers' own modules, with the blocks put into another order in memory."""
    import transformers

    opened = folders(tmp_path, kind, **settings)
    layers = [0, 1, 3, 2, 2, 1]
    slots = [only("a", layer) for layer in layers]
    outside = {"operator": "linear", "sources": ["a"]}
    recipe = recipe_of(slots, default=outside)
    target = export_model(recipe, opened, tmp_path / "out")
    written = json.loads((target / "config.json").read_text())
    assert written[count] == 6
    loaded, info = transformers.AutoModelForCausalLM.from_pretrained(
        target, dtype=torch.float32, output_loading_info=True
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    whole = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "a", dtype=torch.float32)
    stack = whole.transformer if kind == "GPT2" else whole.model
    name = "h" if kind == "GPT2" else "layers"
    setattr(stack, name, nn.ModuleList([getattr(stack, name)[layer] for layer in layers]))
    tokens = torch.arange(10)[None]
    if kind != "GPT2":
        stack.config.num_hidden_layers = 6
        stack.config.layer_types = [stack.config.layer_types[layer] for layer in layers]
        assert written["layer_types"] == stack.config.layer_types
    with torch.no_grad():
        expected = whole(tokens, use_cache=False).logits
        torch.testing.assert_close(loaded(tokens, use_cache=False).logits, expected)


SMALL = {
    "vocab_size": 32, "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 4,
    "num_attention_heads": 2,
}  # fmt: skip
WINDOWED = {
    "num_key_value_heads": 1,
    "use_sliding_window": True,
    "sliding_window": 4,
    "max_window_layers": 2,
}


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("Llama", SMALL),
        ("Gemma2", {**GEMMA, "sliding_window": 4}),
        ("Qwen2", {**SMALL, **WINDOWED}),
        ("GPTNeoX", SMALL),
        ("GPT2", {**GPT2, "model": "GPT2LMHeadModel"}),
    ],
)
def test_a_stack_in_memory_is_the_exported_model(
    tmp_path: Path, kind: str, settings: dict[str, Any]
) -> None:
    """The oracle: the exported folder, loaded by transformers; also in generation with a cache."""
    import transformers

    opened = folders(tmp_path, kind, **settings)
    resident = Resident.open(opened, "base")
    own = resident.module.config.to_dict()
    tokens = torch.arange(1, 9)[None]
    greedy = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "min_new_tokens": 6}
    stacks = [[0, 2, 3], [0, 1, 1, 2, 2, 3, 3], [3, 1, 0, 2], [1], None, [2, 3]]
    for number, layers in enumerate(stacks):
        slots = layers and [{"layer": i, "layers": {"a": layers[0]}} for i in layers]
        recipe = recipe_of(slots, parameters={"weight": {"a": 0.3, "b": 0.6}})
        resident.write(recipe)
        target = export_model(recipe, opened, tmp_path / f"out{number}")
        loaded = transformers.AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32)
        with torch.no_grad():
            expected = loaded(tokens, use_cache=False).logits
            found = resident.module(tokens, use_cache=False).logits
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
            text = loaded.generate(tokens, use_cache=False, **greedy)
            for use_cache in (True, False):
                again = resident.module.generate(tokens, use_cache=use_cache, **greedy)
                assert torch.equal(again, text), (layers, use_cache)
    resident.write(recipe_of(None))
    assert resident.module.config.to_dict() == own


def test_layers_of_two_stacks_are_refused_in_memory(tmp_path: Path) -> None:
    tiny = {"vocab_size": 32, "d_model": 8, "d_ff": 12, "d_kv": 4, "num_heads": 2, "num_layers": 2}
    opened = folders(tmp_path, "T5", **tiny, model="T5ForConditionalGeneration")
    resident = Resident.open(opened, "base")
    with pytest.raises(ConfigurationError, match="several stacks"):
        resident.write(recipe_of([{"layer": 0}, {"layer": 2}]))


def test_two_stacks_do_not_grow(tmp_path: Path) -> None:
    tiny = {"vocab_size": 32, "d_model": 8, "d_ff": 12, "d_kv": 4, "num_heads": 2, "num_layers": 2}
    opened = folders(tmp_path, "T5", **tiny, model="T5ForConditionalGeneration")
    anatomy = anatomy_of(opened["base"])
    assert anatomy.num_layers == 4
    problems = check_recipe(recipe_of([{"layer": i} for i in (0, 1, 2, 3, 3)]), anatomy)
    assert "several stacks" in str(problems[0])
    # The first layer of each half alone has the table of relative positions.
    with pytest.raises(ConfigurationError, match=r"decoder\.block\.0.*the stack has none"):
        export_model(recipe_of([{"layer": i} for i in (0, 1, 3, 3)]), opened, tmp_path / "out")


def test_settings_of_layers_follow_them() -> None:
    config = {"n_layers": 3, "layer_types": ["x", "y", "x"], "mlp_only_layers": [2], "widths": [1]}
    made = stacked_config(config, [2, 0, 1, 2], 3)
    assert made == {
        "n_layers": 4,
        "layer_types": ["x", "x", "y", "x"],
        "mlp_only_layers": [0, 3],
        "widths": [1],
    }
    kinds = layer_kinds(config, 3)
    assert len(set(kinds)) == 3
    with pytest.raises(ConfigurationError, match="no key counts"):
        stacked_config({"depth": 3}, [0, 1], 3)


def kinds_folder(folder: Path, kinds: str) -> str:
    """A model whose config says of each layer whether its attention slides ("s") or is full."""
    names = {"s": "sliding_attention", "f": "full_attention"}
    config = {
        "model_type": "unknown",
        "vocab_size": 11,
        "num_hidden_layers": len(kinds),
        "layer_types": [names[kind] for kind in kinds],
    }
    folder.mkdir()
    state = {f"layers.{i}.w": torch.full((2, 2), float(i)) for i in range(len(kinds))}
    save_file(state | {"embed.weight": torch.zeros(11, 2)}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


def test_a_layer_takes_only_the_place_of_one_of_its_kind(tmp_path: Path) -> None:
    paths = {"base": kinds_folder(tmp_path / "base", "sfsf")}
    paths["deep"] = kinds_folder(tmp_path / "deep", "sfsfsf")

    def recipe(slots: Any) -> Recipe:
        default = {"operator": "passthrough", "sources": ["deep"]}
        data = {"base": "base", "models": paths, "default": default, "slots": slots}
        return Recipe.model_validate(data)

    good = recipe([{"layer": 2, "layers": {"deep": 4}}, {"layer": 3, "layers": {"deep": 5}}])
    out = export_model(good, open_recipe_models(good), tmp_path / "out")
    written = json.loads((out / "config.json").read_text())["layer_types"]
    assert written == ["sliding_attention", "full_attention"]
    bad = recipe([{"layer": 3, "layers": {"deep": 4}}])
    with pytest.raises(ConfigurationError, match=r"slots.0: config.json says other .* of layer 4"):
        open_recipe_models(bad)


def test_a_mergekit_stack_of_a_deeper_model_keeps_the_kinds_of_its_layers(tmp_path: Path) -> None:
    kinds_folder(tmp_path / "base", "sfsf")
    kinds_folder(tmp_path / "deep", "sfsfsf")
    kinds_folder(tmp_path / "full", "fffff")
    stack = """
slices:
  - sources: [{model: base, layer_range: [0, 2]}]
  - sources: [{model: NAME, layer_range: [2, COUNT]}]
merge_method: passthrough
"""
    for name, kinds in (("deep", "sfsfsf"), ("full", "sffff")):
        path = tmp_path / f"{name}.yml"
        path.write_text(stack.replace("NAME", name).replace("COUNT", str(5 + (name == "deep"))))
        recipe = read_recipe(path)
        out = export_model(recipe, open_recipe_models(recipe), tmp_path / f"out_{name}")
        written = json.loads((out / "config.json").read_text())["layer_types"]
        assert [kind[0] for kind in written] == list(kinds)
