"""Layers and components of a transformers model, from the tree of its modules.

The model is built on the meta device, without memory or weights. Its layers are the entries of the
nn.ModuleList, outside any other, that holds the most parameters; lists beside it with as many
entries describe the same layers, and a further list of the same class of block (T5), or of an
encoder-decoder's other half (BART), counts on. No architecture is known by name.
"""

from __future__ import annotations

import contextlib
import re
import warnings
from collections.abc import Iterable, Mapping
from typing import Any, Literal, NamedTuple

import torch
from torch import nn

from evomerge.checkpoints.config_defaults import parsed_config
from evomerge.checkpoints.numbering import (
    Spot,
    component_by_words,
    is_vector_weight,
    spots_by_number,
)

_NORM = re.compile(r"norm|^(ln|bn)(_|\d|$)", re.IGNORECASE)
_ATTENTION = re.compile(r"attn|attention", re.IGNORECASE)
_QUERY_KEY_VALUE = re.compile(
    r"^(w?[qkv]|qkv|query|key|value|query_key_value|[qkv]_(proj|lin)|qkv_proj|c_attn)$",
    re.IGNORECASE,
)


def spots_by_module(
    config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, Spot] | None:
    """The spot of every stored tensor, or None if transformers cannot build the config's class.

    Files may name tensors with or without the prefix of the headless model ("transformer.",
    "bert."); what the tree does not have at all goes by the words of its name.
    """
    model = _meta_model(config)
    if model is None:
        return None
    tree = _Tree(model)
    if not any(tree.find(name) for name in shapes):
        return None
    spots = {}
    if not any(tree.layer_by_name(name)[0] is not None for name in shapes):
        # Files may also name blocks as an older version of transformers did (ViT).
        numbered = spots_by_number({n: s for n, s in shapes.items() if tree.find(n) is None})
        return numbered | {n: tree.spot(f) for n in shapes if (f := tree.find(n)) is not None}
    for name, shape in shapes.items():
        found = tree.find(name)
        if found is not None:
            spots[name] = tree.spot(found)
            continue
        layer, role = tree.layer_by_name(name)
        vector = is_vector_weight(name, shape, shapes)
        spots[name] = Spot(layer, component_by_words(name, layer, vector=vector), role)
    return spots


Kind = Literal["linear", "conv1d", "embedding", "other"]


class Holder(NamedTuple):
    """The module that holds a stored tensor: its path in the tree, and what it computes."""

    path: str
    kind: Kind


def holders_by_module(config: Mapping[str, Any], names: Iterable[str]) -> dict[str, Holder] | None:
    """The holders of those stored tensors that the tree has; None as for `spots_by_module`."""
    from transformers.pytorch_utils import Conv1D

    model = _meta_model(config)
    if model is None:
        return None
    tree = _Tree(model)
    kinds: dict[Any, Kind] = {nn.Linear: "linear", Conv1D: "conv1d", nn.Embedding: "embedding"}
    holders = {}
    for name in names:
        if (found := tree.find(name)) is not None:
            path = found.rpartition(".")[0]
            module = tree.modules[path]
            kind: Kind = next((k for cls, k in kinds.items() if isinstance(module, cls)), "other")
            holders[name] = Holder(path, kind)
    return holders


class Use(NamedTuple):
    """What the module does with a stored tensor.

    parameter: which of its parameters it is, the same for tensors that are tied; None for a buffer.
    multiplies: whether it is a matrix that inputs are multiplied by. An embedding's rows are looked
    up, unless they are also the matrix of the output.
    """

    parameter: int | None
    multiplies: bool


def uses_by_module(config: Mapping[str, Any], names: Iterable[str]) -> dict[str, Use] | None:
    """The uses of those stored tensors that the tree has; None as above."""
    model = _meta_model(config)
    if model is None:
        return None
    tree = _Tree(model)
    return {name: tree.use(own) for name in names if (own := tree.find(name)) is not None}


def shapes_by_module(
    config: Mapping[str, Any], names: Iterable[str]
) -> dict[str, tuple[int, ...]] | None:
    """The shapes that the tree gives to those stored tensors it has; None as above."""
    model = _meta_model(config)
    if model is None:
        return None
    tree = _Tree(model)
    found = {name: tree.find(name) for name in names}
    return {name: tree.shape(own) for name, own in found.items() if own is not None}


def unlike_its_class(
    config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, tuple[tuple[int, ...] | None, tuple[int, ...] | None]] | None:
    """Tensors whose stored shape is not what the config's class stores: name -> (stored, class's).

    None stands for a tensor that is not there; all is None where the class cannot be built.
    """
    model = _meta_model(config)
    if model is None:
        return None
    tree, own = _Tree(model), dict(model.named_parameters())
    tied = dict(model.named_parameters(remove_duplicate=False)).keys() - own.keys()
    wanted = {n: tuple(t.shape) for n, t in model.state_dict().items() if n not in tied}
    stored = {tree.find(name) or name: shape for name, shape in shapes.items()}
    return {
        name: (stored.get(name), wanted.get(name))
        for name in sorted(stored.keys() | wanted.keys())
        if stored.get(name) != wanted.get(name)
    }


def _meta_model(config: Mapping[str, Any]) -> nn.Module | None:
    """The config's model without memory; None where its class is not in transformers."""
    import transformers

    names = config.get("architectures")
    name = names[0] if isinstance(names, list) and names else ""
    found = getattr(transformers, name, None) if isinstance(name, str) and name else None
    classes: list[Any] = [transformers.AutoModelForCausalLM, transformers.AutoModel]
    if isinstance(found, type) and issubclass(found, transformers.PreTrainedModel):
        classes.insert(0, found)
    parsed = parsed_config(config)
    for cls in classes if parsed is not None else ():
        # A config can ask for anything: whatever fails here, the names still tell the layers.
        with contextlib.suppress(Exception), torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            build = cls.from_config if cls in classes[-2:] else cls._from_config
            model: nn.Module = build(parsed)
            return model
    return None


class _Tree:
    """A model's parameters and buffers by name, and its block lists by path."""

    def __init__(self, model: nn.Module) -> None:
        self.modules: dict[str, nn.Module] = dict(model.named_modules(remove_duplicate=False))
        self._tensors: dict[str, torch.Tensor] = dict(
            model.named_parameters(remove_duplicate=False)
        ) | dict(model.named_buffers(remove_duplicate=False))
        prefix = getattr(model, "base_model_prefix", "")
        self._prefix = f"{prefix}." if prefix else ""
        self._has_base = bool(prefix) and prefix in self.modules
        self._inputs = _parameter_ids(_call(model, "get_input_embeddings"))
        self._outputs = _parameter_ids(_call(model, "get_output_embeddings"))
        self.lists = _block_lists(model, self.modules)  # path -> number of its first layer

    def find(self, name: str) -> str | None:
        """The tree's name for a stored tensor."""
        for candidate in (name, self._prefix + name, name.removeprefix(self._prefix)):
            if candidate in self._tensors:
                return candidate
        return None

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor of the tree."""
        return tuple(self._tensors[name].shape)

    def use(self, name: str) -> Use:
        """What the module does with a tensor of the tree."""
        tensor, (path, _, leaf) = self._tensors[name], name.rpartition(".")
        in_layers = self.layer_by_name(name)[0] is not None
        is_table = isinstance(self.modules[path], nn.Embedding)
        # In layers there are also matrices of no module of their own, such as a mixture's experts.
        matrix = tensor.ndim > 1 and not is_table and (leaf == "weight" or in_layers)
        is_learnt = isinstance(tensor, nn.Parameter)
        multiplies = is_learnt and "bias" not in leaf and (matrix or id(tensor) in self._outputs)
        return Use(id(tensor) if is_learnt else None, multiplies and tensor.ndim > 1)

    def spot(self, name: str) -> Spot:
        """The spot of a tensor of the tree."""
        layer, role = self.layer_by_name(name)
        if layer is None:
            return Spot(None, self._outside(name), role)
        return Spot(layer, self._inside(name), role)

    def layer_by_name(self, name: str) -> tuple[int | None, str]:
        """The layer that a name points into, and the tensor's role there."""
        for path, first in self.lists.items():
            for start in (path, path.removeprefix(self._prefix), self._prefix + path):
                match = re.match(re.escape(start) + r"\.(\d+)(?=\.|$)", name)
                if match:
                    return first + int(match.group(1)), f"{start}.*{name[match.end() :]}"
        return None, name

    def _inside(self, name: str) -> str:
        path = next(p for p in self.lists if name.startswith(p + "."))
        parts = name.split(".")
        depth = path.count(".") + 1  # parts of the list's path; its index comes next
        # From the list's own name inwards: parallel lists say "attentions" there.
        steps: list[tuple[str, nn.Module | None]] = [(parts[depth - 1], None)]
        steps += [
            (parts[i - 1], self.modules[".".join(parts[:i])]) for i in range(depth + 2, len(parts))
        ]
        if depth + 2 >= len(parts):  # the list's entries are leaves themselves
            steps.append(("", self.modules[".".join(parts[: depth + 1])]))
        if self._is_norm(name, steps[-1]):
            return "norm"
        if any(_is_attention(part, module) for part, module in steps):
            return "attention"
        tensor = self._tensors[name]
        loose = len(parts) == depth + 2 and not isinstance(steps[-1][1], nn.Linear)
        if loose or not isinstance(tensor, nn.Parameter):
            return "other"  # a gain of the block itself, a mask, a table of frequencies
        return "mlp"

    def _outside(self, name: str) -> str:
        tensor = self._tensors[name]
        parent, _, leaf = name.rpartition(".")
        module = self.modules[parent]
        if id(tensor) in self._inputs:  # a tied head is the embedding
            return "embedding"
        if self._is_norm(name, (parent.rpartition(".")[2], module)):
            return "norm"
        headless = not self._has_base or name.startswith(self._prefix)
        if id(tensor) in self._outputs or not headless or leaf == "final_logits_bias":
            return "head"
        if isinstance(module, nn.Embedding) or re.search("embed", name, re.IGNORECASE):
            return "embedding"
        return "other"

    def _is_norm(self, name: str, step: tuple[str, nn.Module | None]) -> bool:
        part, module = step
        if module is not None and (_NORM.search(type(module).__name__) or _NORM.search(part)):
            return True
        leaf = name.rpartition(".")[2]
        weight = getattr(module, "weight", None)
        one_dimensional = isinstance(weight, torch.Tensor) and weight.ndim == 1
        return leaf in ("weight", "bias") and one_dimensional


def _is_attention(part: str, module: nn.Module | None) -> bool:
    if _ATTENTION.search(part):
        return True
    if module is None:
        return False
    children = [child for child, _ in module.named_children()]
    return bool(_ATTENTION.search(type(module).__name__)) or any(
        _QUERY_KEY_VALUE.match(child) for child in children
    )


def _block_lists(model: nn.Module, modules: Mapping[str, nn.Module]) -> dict[str, int]:
    """The paths of the lists whose entries are layers, with the number of the first entry."""
    lists: dict[str, nn.ModuleList] = {}
    for path, module in modules.items():
        nested = any(path.startswith(other + ".") for other in lists)
        if isinstance(module, nn.ModuleList) and len(module) and not nested:
            lists[path] = module
    if not lists:
        return {}
    main = max(lists, key=lambda path: sum(p.numel() for p in lists[path].parameters()))
    block = type(lists[main][0])
    both_halves = bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))
    numbers: dict[str, int] = {}
    count = 0
    for path, entries in lists.items():
        beside = [
            p
            for p in numbers
            if p.rpartition(".")[0] == path.rpartition(".")[0] and len(lists[p]) == len(entries)
        ]
        if beside:
            numbers[path] = numbers[beside[0]]
        elif path == main or type(entries[0]) is block or both_halves or _twins(path, main, lists):
            numbers[path] = count
            count += len(entries)
    return numbers


def _twins(path: str, main: str, lists: Mapping[str, nn.ModuleList]) -> bool:
    """Whether a list stands beside the main one and has as many entries."""
    same_parent = path.rpartition(".")[0] == main.rpartition(".")[0]
    return same_parent and len(lists[path]) == len(lists[main])


def _call(model: nn.Module, method: str) -> nn.Module | None:
    try:
        found = getattr(model, method)()
    except (AttributeError, NotImplementedError, TypeError):
        return None
    return found if isinstance(found, nn.Module) else None


def _parameter_ids(module: nn.Module | None) -> set[int]:
    return set() if module is None else {id(p) for p in module.parameters()}
