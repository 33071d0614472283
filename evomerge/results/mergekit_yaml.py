"""A recipe as a file for mergekit 0.1.5, where that can express it.

mergekit has one method for a whole file, and one set of models for each slice of layers; the first
slice's stand for the embedding too, the last one's for the final norm and the head. What varies by
component or tensor becomes filters. Where mergekit computes something else, the file says so.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import torch
import yaml

from evomerge.checkpoints.adapters import Adapted
from evomerge.checkpoints.anatomy import Anatomy
from evomerge.checkpoints.derived import Derived
from evomerge.checkpoints.open import Checkpoint
from evomerge.merging.check import resolved_parameters
from evomerge.merging.input_scales import input_scales, scaled_layers
from evomerge.merging.mergekit_methods import METHODS, Method, differences, settings_of
from evomerge.recipe import Recipe, Slot, TokenizerSpec

Value = bool | int | float | str
VERSION = "0.1.5"


class _NotExpressibleError(Exception):
    """mergekit has no words for the recipe."""


@dataclass
class _Slice:
    """Layers [first, first + num_layers) of each model."""

    first: dict[str, int]  # model -> its first layer, in the recipe's order
    num_layers: int
    tensors: dict[str, _Tensor]  # by role

    def take(self, other: _Slice) -> bool:
        """Append a slice that goes on where this one ends, if what both have is merged alike."""
        goes_on = {model: first + self.num_layers for model, first in self.first.items()}
        if list(goes_on.items()) != list(other.first.items()):
            return False
        if any(other.tensors.get(role, tensor) != tensor for role, tensor in self.tensors.items()):
            return False
        self.num_layers += other.num_layers
        self.tensors = self.tensors | other.tensors
        return True


@dataclass(frozen=True)
class _Tensor:
    """What the file says of a tensor; equal in all layers of a slice."""

    shared: Mapping[str, Value]
    each: Mapping[str, Mapping[str, Value]]


@dataclass
class _Writer:
    recipe: Recipe
    anatomy: Anatomy
    method: Method
    remarks: dict[str, None] = field(default_factory=dict)
    deltas: set[bool] = field(default_factory=set)

    def slices(self) -> list[_Slice]:
        """The merged model's layers, with the tensors outside them in the first and the last."""
        slices: list[_Slice] = []
        stack = self.recipe.slots or [Slot(layer=i) for i in range(self.anatomy.num_layers)]
        for number, slot in enumerate(stack):
            read = slot.layer_of(self.recipe.base)
            names = [n for n, place in self.anatomy.places.items() if place.layer == read]
            tensors = {
                self.anatomy.roles[name]: self._tensor(
                    number,
                    self.anatomy.places[name].component,
                    self.anatomy.name_in_slot(name, number),
                    self._branch_scale(slot, name),
                )
                for name in names
            }
            models = self._models(tensors.values())
            one = _Slice({model: slot.layer_of(model) for model in models}, 1, tensors)
            if number == 0:
                one.tensors |= self._outside(before=True)
            if number == len(stack) - 1:
                one.tensors |= self._outside(before=False)
            self._models(one.tensors.values())
            slices.append(one)
        return slices

    def _outside(self, *, before: bool) -> dict[str, _Tensor]:
        found = {}
        for name, place in self.anatomy.places.items():
            early = place.component == "embedding" or (
                place.component in ("norm", "other") and "embed" in name
            )
            if place.layer is None and early == before:
                found[name] = self._tensor(None, place.component, name)
        return found

    def _branch_scale(self, slot: Slot, name: str) -> float:
        """The factor of a tensor of the base that stands in a slot."""
        scale = slot.branch_scale
        return scale if scale != 1 and name in self.anatomy.branch_outputs else 1.0

    def _tensor(self, slot: int | None, component: str, name: str, scale: float = 1.0) -> _Tensor:
        merge = self.recipe.merge_for(slot, component, name)
        if merge.operator != self.method.name:
            raise _NotExpressibleError
        values = resolved_parameters(merge)
        if scale != 1:
            if self.method.name != "passthrough":
                raise _NotExpressibleError
            values = {**values, "scale": scale * cast("float", values["scale"])}
        self.remarks.update(dict.fromkeys(differences(self.method, values)))
        sources = merge.sources or ()
        shared, each = settings_of(self.method, values, sources)
        self.deltas.add(self.method.base == "needed" or bool(values.get("deltas")))
        if True in self.deltas:
            each = {**each, self.recipe.base: {}}
        return _Tensor(shared, each)

    @staticmethod
    def _models(tensors: Iterable[_Tensor]) -> list[str]:
        """The models of a slice's tensors, which must be the same for all."""
        kinds = {tuple(tensor.each) for tensor in tensors}
        if len(kinds) != 1:
            raise _NotExpressibleError
        return list(kinds.pop())


def mergekit_yaml(
    recipe: Recipe, checkpoints: Mapping[str, Checkpoint], anatomy: Anatomy
) -> str | None:
    """The text of mergekit's file; None where it cannot say what the recipe says."""
    method = METHODS.get(recipe.default.operator or "")
    config = checkpoints[recipe.base].config
    if method is None or recipe.segments is not None or not config or not anatomy.num_layers:
        return None
    if scaled_layers(input_scales(recipe, checkpoints[recipe.base], anatomy.num_layers)):
        return None
    writer = _Writer(recipe, anatomy, method)
    try:
        slices = writer.slices()
        if len(writer.deltas) > 1:
            return None
        paths = {name: _path(name, recipe, checkpoints) for name in recipe.models}
        data = _data(recipe, checkpoints, writer, _joined(slices), paths)
        if recipe.matches:  # no file of mergekit's says that
            return None
    except _NotExpressibleError:
        return None
    remarks = [f"# not exact: {remark}\n" for remark in writer.remarks]
    text = yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
    return f"# For mergekit {VERSION}.\n{''.join(remarks)}{text}"


def _data(
    recipe: Recipe,
    checkpoints: Mapping[str, Checkpoint],
    writer: _Writer,
    slices: list[_Slice],
    paths: Mapping[str, Any],
) -> dict[str, Any]:
    method, anatomy = writer.method, writer.anatomy
    data: dict[str, Any] = {"merge_method": method.name}
    has_base = recipe.base in slices[0].first
    if True in writer.deltas or method.base == "ignored":
        data["base_model"] = paths[recipe.base]
    whole = slices[0]
    depths = {anatomy.num_layers_of(set(checkpoints[model].names)) for model in whole.first}
    is_whole = len(slices) == 1 and depths == {whole.num_layers} == {anatomy.num_layers}
    if is_whole and set(whole.first.values()) == {0} and (has_base or "base_model" not in data):
        shared, each = _settings(whole)
        data["models"] = [
            {"model": paths[model], **({"parameters": each[model]} if each[model] else {})}
            for model in whole.first
        ]
        if shared:
            data["parameters"] = shared
    else:
        data["slices"] = [_slice_data(one, paths) for one in slices]
    data["dtype"] = "float32"
    data["out_dtype"] = recipe.dtype or _stored_dtype(checkpoints[recipe.base], writer)
    if recipe.tokenizer is not None:
        known = {recipe.base: "base"} if "base_model" in data else {}
        data |= _tokenizer(TokenizerSpec.of(recipe.tokenizer), {**paths, **known}, paths)
    if recipe.chat_template is not None:
        data["chat_template"] = recipe.chat_template
    return data


def _tokenizer(
    spec: TokenizerSpec, sources: Mapping[str, Any], paths: Mapping[str, Any]
) -> dict[str, Any]:
    """What the file says of tokens; `sources` are the models as whose tokens it names."""
    source = sources.get(spec.source, spec.source)
    if not spec.tokens and spec.pad_to_multiple_of is None:
        return {"tokenizer_source": source}
    tokens: dict[str, Any] = {}
    for token, row in spec.tokens.items():
        found: Any = {"kind": "zero"}
        if row.model is not None:
            wanted = {"token": row.token, "token_id": row.id}
            named = {key: value for key, value in wanted.items() if value is not None}
            found = paths[row.model]
            found = {"kind": "model_token", "model": found, **named} if named else found
        tokens[token] = {"source": found, **({"force": True} if row.force else {})}
    said: dict[str, Any] = {"source": source, **({"tokens": tokens} if tokens else {})}
    if spec.pad_to_multiple_of is not None:
        said["pad_to_multiple_of"] = spec.pad_to_multiple_of
    return {"tokenizer": said}


def _joined(slices: list[_Slice]) -> list[_Slice]:
    """Neighbours that are merged alike, as one slice."""
    joined: list[_Slice] = []
    for one in slices:
        if not (joined and joined[-1].take(one)):
            joined.append(one)
    return joined


def _slice_data(one: _Slice, paths: Mapping[str, Any]) -> dict[str, Any]:
    shared, each = _settings(one)
    sources = [
        {
            "model": paths[model],
            "layer_range": [first, first + one.num_layers],
            **({"parameters": each[model]} if each[model] else {}),
        }
        for model, first in one.first.items()
    ]
    return {"sources": sources, **({"parameters": shared} if shared else {})}


def _settings(one: _Slice) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """A slice's shared parameters and each model's, with filters where tensors differ."""
    tensors = one.tensors
    first = next(iter(tensors.values()))
    shared = {
        name: _setting({role: tensor.shared[name] for role, tensor in tensors.items()})
        for name in first.shared
    }
    each = {
        model: {
            name: _setting({role: t.each[model][name] for role, t in tensors.items()})
            for name in first.each[model]
        }
        for model in first.each
    }
    return shared, each


def _setting(values: Mapping[str, Value]) -> Any:
    """One value, or values with filters: role -> value as mergekit finds it by parts of names."""
    common = Counter(values.values()).most_common(1)[0][0]
    others = list(dict.fromkeys(value for value in values.values() if value != common))
    if not others:
        return common
    conditions: list[dict[str, Value]] = []
    for value in others:
        wanted = [role for role, one in values.items() if one == value]
        rest = [role for role, one in values.items() if one != value]
        conditions += [{"filter": part, "value": value} for part in _filters(wanted, rest)]
    return [*conditions, {"value": common}]


def _filters(wanted: list[str], rest: list[str]) -> list[str]:
    """Parts of names that are in all of the wanted ones together, and in none of the rest.

    A layer's number, for which a role has a *, is in no part: it differs between the models.
    """
    found = []
    left = list(wanted)
    while left:
        parts = Counter(part for role in left for part in {*_pieces(role)})
        fitting = [part for part in parts if not any(part in other for other in rest)]
        if not fitting:
            raise _NotExpressibleError
        best = max(fitting, key=lambda part: (parts[part], -len(part), part))
        found.append(best)
        left = [role for role in left if best not in role]
    return found


def _pieces(role: str) -> Iterable[str]:
    """What filters may look for: single words of a name, or all that follows the layer's number."""
    stem, _, tail = role.rpartition("*")
    yield tail or stem
    yield from (word for word in (tail or role).split(".") if word and not word.isdigit())


def _path(name: str, recipe: Recipe, checkpoints: Mapping[str, Checkpoint]) -> Any:
    """A model as mergekit reads it; a path with a sign that mergekit reads in its long form."""
    opened = checkpoints[name]
    path = str(opened.path.resolve()) if opened.path is not None else recipe.models[name].path
    seen: Checkpoint = opened
    while isinstance(seen, Derived) and not isinstance(seen, Adapted):
        seen = seen.origin  # an adapter may be seen with other tokens or heads
    if isinstance(seen, Adapted):
        base = checkpoints[recipe.base]
        own = str(base.path.resolve()) if base.path is not None else ""
        return {"model": {"path": own}, "lora": {"path": str(seen.adapter.folder.resolve())}}
    if opened.path is None or not opened.path.is_dir():
        raise _NotExpressibleError
    return {"model": {"path": path}} if set(path) & set("+@") else path


def _stored_dtype(base: Checkpoint, writer: _Writer) -> str:
    stored = Counter(base.dtype(name) for name in base.names if base.dtype(name).is_floating_point)
    if len(stored) > 1:
        writer.remarks["here each tensor keeps the base's own dtype"] = None
    return str(stored.most_common(1)[0][0] if stored else torch.float32).removeprefix("torch.")


class _Dumper(yaml.SafeDumper):
    """Without anchors for what is said twice, and ranges in one line."""

    def ignore_aliases(self, data: Any) -> bool:
        """Say everything where it belongs."""
        del data
        return True


def _in_one_line(dumper: yaml.SafeDumper, values: list[Any]) -> yaml.Node:
    flow = all(isinstance(value, int | float) for value in values)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", values, flow_style=flow)


_Dumper.add_representer(list, _in_one_line)
