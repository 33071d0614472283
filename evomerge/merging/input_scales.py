"""Factors of what goes into a module's layers: hooks, since no weights can hold them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

from torch import nn

from evomerge.checkpoints.input_scales import INPUT_SCALES, stored_scales
from evomerge.checkpoints.open import Checkpoint
from evomerge.errors import ModelError, Problem
from evomerge.recipe import Recipe

_HANDLES = "_evomerge_input_scales"  # the attribute with a module's hooks


def input_scales(recipe: Recipe, base: Checkpoint, num_layers: int) -> tuple[float, ...]:
    """The factor of each layer's input in a merged model.

    Where the base's layers have factors of their own, these go with them.

    Args:
        recipe: whose slots fit the base.
        base: the recipe's base.
        num_layers: of the base.

    Raises:
        ModelError: the base's config says something that is no list of scales.
    """
    own = stored_scales(base.config, num_layers, base.where)
    if recipe.slots is None:
        return own
    return tuple(slot.input_scale * own[slot.layer_of(recipe.base)] for slot in recipe.slots)


def scaled_layers(scales: Iterable[float]) -> list[int]:
    """The layers whose input a factor changes."""
    return [layer for layer, scale in enumerate(scales) if scale != 1]


def apply_scales(module: nn.Module) -> nn.Module:
    """Let a loaded transformers model scale its layers' inputs as its config.json says.

    A model that `evomerge export --scales attribute` wrote has a number for each layer in
    `config.evomerge_input_scales`; transformers loads it and computes without it. Then the hidden
    states that enter layer i are multiplied by the i-th number (Akiba et al. 2024,
    https://arxiv.org/abs/2403.13187, section 3.2). Twice does what once does; a model whose config
    has no such key is left as it is.

    Args:
        module: a model with one stack of layers, as from_pretrained gives it. It is changed.

    Returns:
        The same module.

    Raises:
        ModelError: the config does not say one positive number for each of the layers.
    """
    config = {INPUT_SCALES: getattr(getattr(module, "config", None), INPUT_SCALES, None)}
    if config[INPUT_SCALES] is None:
        return module
    lists = [part for part in module.modules() if isinstance(part, nn.ModuleList)]
    where = type(module).__name__
    if not lists:
        raise ModelError(Problem(where, "has no list of layers"))
    layers = max(lists, key=lambda part: sum(p.numel() for p in part.parameters()))
    hook_scales(module, layers, stored_scales(config, len(layers), where))
    return module


def hook_scales(module: nn.Module, layers: Iterable[nn.Module], scales: Sequence[float]) -> None:
    """Multiply what goes into layers; the hooks that the module had of this kind are removed."""
    for handle in getattr(module, _HANDLES, ()):
        handle.remove()
    handles = [
        layer.register_forward_pre_hook(partial(_scaled, scale), with_kwargs=True)
        for layer, scale in zip(layers, scales, strict=True)
        if scale != 1
    ]
    setattr(module, _HANDLES, handles)


def _scaled(
    scale: float, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A layer's arguments with the hidden states multiplied, in their own dtype."""
    if args:
        return (args[0] * scale, *args[1:]), kwargs
    if "hidden_states" not in kwargs:
        what = f"is called with {', '.join(kwargs) or 'nothing'}, and not with hidden_states"
        raise ModelError(Problem(type(layer).__name__, what, "its input cannot be scaled"))
    return args, {**kwargs, "hidden_states": kwargs["hidden_states"] * scale}
