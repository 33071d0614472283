"""The config of a model whose layers were repeated, left out or reordered."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from evomerge.checkpoints.config_defaults import completed
from evomerge.checkpoints.module_tree import unlike_its_class
from evomerge.errors import ConfigurationError, Problem

Shapes = Mapping[str, tuple[int, ...]]

_COUNTS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
# Lists of the numbers of layers that are special; all other lists have an entry for each layer.
_NUMBERS_OF_LAYERS = ("mlp_only_layers", "cross_attention_layers", "full_attn_idxs")
# What a class works out from the layers' numbers where config.json is silent.
_WORKED_OUT = ("layer_types", "mlp_layer_types", "no_rope_layers")


def stacked_config(
    config: Mapping[str, Any], layers: Sequence[int], num_layers: int
) -> dict[str, Any]:
    """The config of a model made of a model's layers.

    Lists with an entry for each layer, such as `layer_types`, follow the layers. What a class works
    out from a layer's number alone is not followed, other than `layer_types` and its kind.

    Args:
        config: of the model that the layers are from.
        layers: the layer at each place of the new model.
        num_layers: of the old one.

    Raises:
        ConfigurationError: the number of layers changes, and the config has no count of them.
    """
    made: dict[str, Any] = json.loads(json.dumps(config))
    if list(layers) == list(range(num_layers)) or not made:
        return made
    counted = False
    for part, complete in _parts(made):
        counts = [key for key in _COUNTS if part.get(key) == num_layers]
        counted = counted or bool(counts)
        if not counts:
            continue
        part.update(dict.fromkeys(counts, len(layers)))
        for key in _WORKED_OUT:
            value = complete.get(key)
            if isinstance(value, list) and key not in part and len(set(value)) > 1:
                part[key] = value
        for key, value in list(part.items()):
            if key in _NUMBERS_OF_LAYERS and isinstance(value, list):
                part[key] = [place for place, layer in enumerate(layers) if layer in value]
            elif _of_layers(key) and _is_per_layer(value, num_layers):
                part[key] = [value[layer] for layer in layers]
    if not counted and len(layers) != num_layers:
        what = f"no key counts the model's {num_layers} layers, so {len(layers)} cannot be written"
        raise ConfigurationError(Problem("config.json", what, f"looked for {', '.join(_COUNTS)}"))
    return made


def stack_problems(
    base: Mapping[str, Any],
    base_shapes: Shapes,
    stacked: Mapping[str, Any],
    shapes: Shapes,
) -> list[Problem]:
    """Where a stack's tensors are not those of the class that its config makes.

    Layers need not be alike: some have tensors that others lack, by rules that only the class
    knows. Where it does not agree with the base's own tensors either, nothing is said.

    Args:
        base: the base's config.
        base_shapes: of its tensors.
        stacked: the config of the rearranged model.
        shapes: of that one's tensors.
    """
    if unlike_its_class(base, base_shapes) != {}:
        return []
    return [
        Problem(
            f"slots: tensor {name!r}",
            f"the stack has {_said(found)}, and its class {_said(expected)}",
            "these layers cannot stand in this order",
        )
        for name, (found, expected) in list((unlike_its_class(stacked, shapes) or {}).items())[:8]
    ]


def _said(shape: tuple[int, ...] | None) -> str:
    return "none" if shape is None else f"shape {list(shape)}"


def layer_kinds(config: Mapping[str, Any], num_layers: int) -> list[str]:
    """What a config says of each layer apart; layers of one kind can stand for each other."""
    return [json.dumps(one, sort_keys=True) for one in layer_settings(config, num_layers)]


def are_alike(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether layers of two models are of one kind, as far as both configs speak of it."""
    return all(one[key] == other[key] for key in one.keys() & other.keys())


def layer_settings(config: Mapping[str, Any], num_layers: int) -> list[dict[str, Any]]:
    """What a config says of each layer apart, by key."""
    settings: list[dict[str, Any]] = [{} for _ in range(num_layers)]
    for number, (part, complete) in enumerate(_parts(dict(config))):
        for key, value in {**{k: complete.get(k) for k in _WORKED_OUT}, **part}.items():
            if key in _NUMBERS_OF_LAYERS and isinstance(value, list):
                value = [layer in value for layer in range(num_layers)]
            elif not _of_layers(key) or not _is_per_layer(value, num_layers):
                continue
            for layer, setting in zip(settings, value, strict=True):
                layer[f"{number} {key}"] = setting
    return settings


def _of_layers(key: str) -> bool:
    return "layer" in key or "block" in key


def _parts(config: dict[str, Any]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """The parts of a config that describe the text model, each with its class's defaults."""
    complete = completed(config)
    parts = [(config, complete)]
    if isinstance(text := config.get("text_config"), dict):
        inner = complete.get("text_config")
        parts.append((text, inner if isinstance(inner, dict) else text))
    return parts


def _is_per_layer(value: Any, num_layers: int) -> bool:
    return isinstance(value, list) and len(value) == num_layers
