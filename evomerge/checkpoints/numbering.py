"""Layers and components of a plain state dict, from the numbers and words in its names.

The layers are the longest numbering that is not inside another one: `layers.<i>.`, `h.<i>.`,
`fc<i>.`. Numberings that stand beside it and count the same (`conv<i>`, `bn<i>`) belong to the same
layers; those of the same word elsewhere (`encoder.block.<i>`, `decoder.block.<i>`) count on.
Numbers may have gaps, as in an nn.Sequential with activations between; layers have none.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Container, Iterable, Mapping, Sequence
from typing import NamedTuple

_NUMBER = re.compile(r"(?<=[A-Za-z_])\d+(?=\.|$)|(?<![^.])\d+(?=\.|$)")
_NORM = re.compile(r"norm|(^|[._])(ln|bn)(_|\w*(\.|$))|running_(mean|var)", re.IGNORECASE)
_ATTENTION = re.compile(r"attn|attention", re.IGNORECASE)
_MLP = re.compile(r"mlp|ffn|feed_?forward|dense_?\w*_?dense", re.IGNORECASE)
_QUERY_KEY_VALUE = re.compile(
    r"(^|[._])(w?[qkvo]|qkv|query|key|value|[qkvo]_(proj|lin))\d*([._]|$)", re.IGNORECASE
)
_EMBEDDING = re.compile(r"embed|(^|[._])(wte|wpe|emb|tok|pos|shared)([._]|$)", re.IGNORECASE)
_UNEMBEDDING = re.compile(r"unembed|embed(ding)?s?_out|output_embed", re.IGNORECASE)
_HEAD = re.compile(r"head|(^|[._])(classifier|score|logits|cls|unembed)([._]|$)", re.IGNORECASE)


class Spot(NamedTuple):
    """Where a tensor sits; tensors of one role are each other's counterparts in other layers."""

    layer: int | None
    component: str
    role: str


def spots_by_number(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Spot]:
    """The spot of every tensor of a state dict without a config."""
    layers: dict[str, dict[int, int]] = {}  # prefix -> index in names -> layer
    count = 0
    for stack in _stacks(shapes):
        indices = sorted({index for numbering in stack.values() for index in numbering})
        rank = {index: count + place for place, index in enumerate(indices)}
        layers |= dict.fromkeys(stack, rank)
        count += len(indices)
    spots = {}
    for name, shape in shapes.items():
        layer, role = None, name
        for match in _NUMBER.finditer(name):
            prefix = name[: match.start()]
            if prefix in layers:
                layer = layers[prefix][int(match.group())]
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
        if _ATTENTION.search(name):
            return "attention"
        # T5's `wo` is in an MLP; elsewhere it is an attention's.
        return "attention" if _QUERY_KEY_VALUE.search(name) and not _MLP.search(name) else "mlp"
    if _EMBEDDING.search(name) and not _UNEMBEDDING.search(name):
        return "embedding"
    return "head" if _HEAD.search(name) or _UNEMBEDDING.search(name) else "other"


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


def _stacks(names: Iterable[str]) -> list[dict[str, set[int]]]:
    """Stacks of layers, in order: prefix -> indices of the numberings that count a stack's."""
    found: dict[str, set[int]] = defaultdict(set)
    tensors: dict[str, int] = defaultdict(int)
    for name in names:
        for match in _NUMBER.finditer(name):
            found[name[: match.start()]].add(int(match.group()))
            tensors[name[: match.start()]] += 1
    repeated = {prefix: indices for prefix, indices in found.items() if len(indices) > 1}
    outer = {
        prefix: indices for prefix, indices in repeated.items() if not _is_inside(prefix, repeated)
    }
    if not outer:
        return []
    longest = max(outer, key=lambda prefix: (len(outer[prefix]), tensors[prefix], prefix))
    parent = longest.rpartition(".")[0]
    first = {
        prefix: indices
        for prefix, indices in outer.items()
        if prefix == longest
        or (
            indices == outer[longest]
            and prefix.rpartition(".")[0] == parent
            and not prefix.endswith(".")
        )
    }
    stacks = [first]
    stacks += [
        {p: outer[p]} for p in outer if p not in first and _last_word(p) == _last_word(longest)
    ]
    # An encoder comes before its decoder.
    return sorted(stacks, key=lambda stack: ("decoder" in min(stack), min(stack)))


def _is_inside(prefix: str, others: Container[str]) -> bool:
    """Whether a numbering counts within an entry of another one."""
    return any(
        prefix[: match.start()] in others
        for match in _NUMBER.finditer(prefix)
        if prefix[match.end() : match.end() + 1] == "."
    )


def _last_word(prefix: str) -> str:
    """What is counted: the `block` of `encoder.block.`; nothing for numbers within a word."""
    return prefix[:-1].rpartition(".")[2] if prefix.endswith(".") else f"{prefix}?"
