"""Layers and components of a plain state dict, from the numbers and words in its names.

The layers are the longest numbering that is not inside another one: `layers.<i>.`, `h.<i>.`,
`fc<i>.`. Numberings that stand beside it and count the same (`conv<i>`, `bn<i>`) belong to the same
layers. Numbers may have gaps, as in an nn.Sequential with activations between; layers have none.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

_NUMBER = re.compile(r"(?<=[A-Za-z_])\d+(?=\.|$)|(?<![^.])\d+(?=\.|$)")
_NORM = re.compile(r"norm|(^|[._])(ln|bn)(_?\w*)?\d*([._]|$)|running_(mean|var)", re.IGNORECASE)
_ATTENTION = re.compile(
    r"attn|attention|(^|[._])(w?[qkvo]|qkv|query|key|value|[qkvo]_(proj|lin))\d*([._]|$)",
    re.IGNORECASE,
)
_EMBEDDING = re.compile(r"embed|(^|[._])(wte|wpe|emb|tok|pos)([._]|$)", re.IGNORECASE)
_HEAD = re.compile(r"head|(^|[._])(classifier|score|logits|cls|unembed)([._]|$)", re.IGNORECASE)


class Spot(NamedTuple):
    """Where a tensor sits; tensors of one role are each other's counterparts in other layers."""

    layer: int | None
    component: str
    role: str


def spots_by_number(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Spot]:
    """The spot of every tensor of a state dict without a config."""
    chosen = _layer_numberings(shapes)
    indices = sorted({index for numbering in chosen.values() for index in numbering})
    rank = {index: layer for layer, index in enumerate(indices)}
    spots = {}
    for name, shape in shapes.items():
        layer, role = None, name
        for match in _NUMBER.finditer(name):
            prefix = name[: match.start()]
            if prefix in chosen:
                layer = rank[int(match.group())]
                role = f"{prefix}*{name[match.end() :]}"
                break
        vector = is_vector_weight(name, shape, shapes)
        spots[name] = Spot(layer, component_by_words(name, layer, vector=vector), role)
    return spots


def component_by_words(name: str, layer: int | None, *, vector: bool = False) -> str:
    """The component that a name's words speak of.

    Args:
        name: the tensor's full name.
        layer: its layer; inside layers there are no embeddings and no heads.
        vector: whether it is a weight with one dimension, which only norms have.
    """
    if _NORM.search(name) or vector:
        return "norm"
    if layer is not None:
        return "attention" if _ATTENTION.search(name) else "mlp"
    if _EMBEDDING.search(name):
        return "embedding"
    return "head" if _HEAD.search(name) else "other"


def is_vector_weight(
    name: str, shape: Sequence[int], shapes: Mapping[str, tuple[int, ...]]
) -> bool:
    """Whether a tensor, or the weight beside this bias, is a `weight` of one dimension."""
    parent, _, leaf = name.rpartition(".")
    if leaf == "bias":
        shape = shapes.get(f"{parent}.weight" if parent else "weight", (0, 0))
    elif leaf != "weight":
        return False
    return len(shape) == 1


def _layer_numberings(names: Iterable[str]) -> dict[str, set[int]]:
    """Prefix -> indices of the numberings that count the layers; {} if nothing is numbered."""
    found: dict[str, set[int]] = defaultdict(set)
    tensors: dict[str, int] = defaultdict(int)
    for name in names:
        for match in _NUMBER.finditer(name):
            found[name[: match.start()]].add(int(match.group()))
            tensors[name[: match.start()]] += 1
    repeated = {prefix: indices for prefix, indices in found.items() if len(indices) > 1}
    outer = {
        prefix: indices
        for prefix, indices in repeated.items()
        if not any(
            re.match(re.escape(other) + r"\d+\.", prefix) for other in repeated if other != prefix
        )
    }
    if not outer:
        return {}
    longest = max(outer, key=lambda prefix: (len(outer[prefix]), tensors[prefix], prefix))
    parent = longest.rpartition(".")[0]
    return {
        prefix: indices
        for prefix, indices in outer.items()
        if prefix == longest
        or (
            indices == outer[longest]
            and prefix.rpartition(".")[0] == parent
            and not prefix.endswith(".")
        )
    }
