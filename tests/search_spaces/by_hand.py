"""Modules put together by hand, beside which candidates of any structure are held.

By hand: transformers' own module whose list of layers holds deep copies, one for each slot.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scaled_models import (
    GPT,
    LLAMA,
    layers_of,
    loaded,
    logits,
    scale_inputs_by_hand,
    scale_outputs_by_hand,
    text,
)
from torch import Tensor, nn

from evomerge.checkpoints.anatomy import anatomy_of
from evomerge.checkpoints.open import Checkpoint, open_checkpoint
from evomerge.documents import Document
from evomerge.recipe import Merge, Recipe, Slot
from evomerge.search_spaces import make_space, parse_space

MODELS = ("base", "a", "b")
LAYERS = 4
SMALL = {**LLAMA, "num_hidden_layers": LAYERS}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {**SMALL, "tie_word_embeddings": False}),
    "llama, tied": ("llama", {**SMALL, "tie_word_embeddings": True}),
    "gpt2, tied": ("gpt2", {**GPT, "n_layer": LAYERS}),
    "gpt2": ("gpt2", {**GPT, "n_layer": LAYERS, "tie_word_embeddings": False}),
    # Layers that see all, and layers that see three tokens; the prompt has eight.
    "qwen2": (
        "qwen2",
        {**SMALL, "use_sliding_window": True, "sliding_window": 3, "max_window_layers": 2},
    ),
    "gemma2": ("gemma2", {**SMALL, "sliding_window": 3}),
}

Family = dict[str, Path]


def write_family(folder: Path, name: str) -> Family:
    """A base and two experts of random weights that are large enough for every layer to count."""
    import transformers

    kind, settings = FAMILIES[name]
    found = {}
    for seed, model in enumerate(MODELS):
        torch.manual_seed(seed)
        config = transformers.AutoConfig.for_model(kind, **settings)
        module = transformers.AutoModelForCausalLM.from_config(config)
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.2)
        module.save_pretrained(folder / model)
        found[model] = folder / model
    return found


def opened(family: Family) -> dict[str, Checkpoint]:
    return {name: open_checkpoint(path, name=name) for name, path in family.items()}


def space_over(family: Family, data: dict[str, Any]) -> Any:
    models = {name: str(path) for name, path in family.items()}
    template = Recipe.model_validate(
        {"base": "base", "models": models, "default": {"operator": "linear"}}
    )
    anatomy = anatomy_of(open_checkpoint(family["base"], name="base"))
    return make_space(parse_space(Document(data)), template, anatomy)


def recipes_of(space: Any, count: int) -> list[Recipe]:
    """Of so many random points that have no violations."""
    generator = np.random.default_rng(2)
    found: list[Recipe] = []
    while len(found) < count:
        genome = space.sample(generator)
        if not space.violations(genome):
            found.append(space.decode(genome))
    return found


def blended(merge: Merge, parts: dict[str, nn.Module]) -> nn.Module:
    """A copy whose parameters are one model's, the models' mean, or base + w sum(model - base)."""
    sources = merge.sources or ("a", "b")
    states = {name: part.state_dict() for name, part in parts.items()}
    made = copy.deepcopy(parts["base"])
    state: dict[str, Tensor] = {}
    for key, base in states["base"].items():
        theirs = [states[source][key] for source in sources]
        if merge.operator == "task_arithmetic":
            weight = merge.parameters["weight"]
            state[key] = base + weight * sum(one - base for one in theirs)
        else:
            state[key] = torch.stack(theirs).mean(dim=0)
    made.load_state_dict(state)
    return made


def merge_of(slot: Slot) -> Merge:
    return slot.merges.get("default", Merge(sources=("base",)))


def put_together(family: Family, recipe: Recipe) -> Any:
    """A plain module with these layers in a list of its own."""
    kinds = {name: loaded(path) for name, path in family.items()}
    module = kinds["base"]
    own = {name: list(layers_of(kinds[name])) for name in family}
    stack = recipe.slots or ()
    made = []
    for number, slot in enumerate(stack):
        block = blended(merge_of(slot), {name: blocks[slot.layer] for name, blocks in own.items()})
        for part in block.modules():
            if hasattr(part, "layer_idx"):
                part.layer_idx = number
        made.append(block)
    first, last = (merge_of(slot) for slot in (stack[0], stack[-1]))
    put_outside(module, kinds, recipe, first, last)
    container = module.transformer if hasattr(module, "transformer") else module.model
    setattr(container, "h" if hasattr(container, "h") else "layers", nn.ModuleList(made))
    module.config.num_hidden_layers = len(made)
    if (types := getattr(module.config, "layer_types", None)) is not None:
        module.config.layer_types = [types[slot.layer] for slot in stack]
    if recipe.is_scaled:
        kind = module.config.model_type
        scale_outputs_by_hand(kind, module, [slot.branch_scale for slot in stack])
        scale_inputs_by_hand(layers_of(module), [slot.input_scale for slot in stack])
    return module


def put_outside(
    module: Any, kinds: dict[str, Any], recipe: Recipe, first: Merge, last: Merge
) -> None:
    """Embedding, final norm and head, as the space's `outside` says."""
    if not recipe.outside:
        return
    is_mean = recipe.merge_for(None, "embedding").operator == "linear"
    mean = Merge(operator="linear")
    for name, part in list(module.named_modules()):
        if list(part.children()) or ".h." in f".{name}." or ".layers." in f".{name}.":
            continue
        if not list(part.parameters()):
            continue
        early = "embed" in name or "wte" in name or "wpe" in name
        parts = {model: kind.get_submodule(name) for model, kind in kinds.items()}
        tied = module.config.tie_word_embeddings and name == "lm_head"
        merge = mean if is_mean else first if early or tied else last
        state = blended(merge, parts).state_dict()
        with torch.no_grad():
            for key, value in part.state_dict().items():
                value.copy_(state[key])


def check(found: Any, expected: Any) -> None:
    """The same logits, and the same text with a cache and without one."""
    torch.testing.assert_close(logits(found), logits(expected), rtol=0, atol=1e-5)
    by_hand = text(expected, use_cache=False)
    assert text(expected, use_cache=True) == by_hand
    for use_cache in (True, False):
        assert text(found, use_cache=use_cache) == by_hand
