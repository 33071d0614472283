"""What may stand in mergekit's YAML file, and what a parameter's value there is for a tensor.

mergekit ignores keys and parameters that it does not know; here they are errors. What it knows and
evomerge cannot do is refused by name.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    TypeAdapter,
    ValidationError,
)
from pydantic import model_validator as validate_model

from evomerge.documents import Document
from evomerge.errors import Problem, nearest
from evomerge.merging.mergekit_methods import IGNORED, Method

Settings = Mapping[str, Any]
_NUMBER_OR_NAME = (bool, int, float, str)


class Part(BaseModel):
    """A mapping of the file: unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class ModelRef(Part):
    """A model, with an adapter on top of it or not."""

    path: str
    lora: str | None = None

    @validate_model(mode="before")
    @classmethod
    def _as_mergekit_reads_it(cls, value: Any) -> Any:
        """`path`, `path+adapter`, or mergekit's long form of either."""
        if isinstance(value, str):
            path, *adapters = value.split("+")
            if len(adapters) > 1:
                raise ValueError("more than one + in a model's name")
            value = {"model": path, "lora": adapters[0] if adapters else None}
        if not isinstance(value, Mapping):
            return value
        parts = dict(value)
        if parts.pop("override_architecture", None) is not None:
            raise ValueError("override_architecture is not supported")
        model, lora = (_plain_path(parts.pop(key, None)) for key in ("model", "lora"))
        return {**parts, "lora": lora, **({} if model is None else {"path": model})}


def _plain_path(value: Any) -> Any:
    """A path out of mergekit's `path` or `{path: ..., revision: ...}`."""
    if not isinstance(value, Mapping):
        return value
    if value.get("revision") is not None:
        raise ValueError("revisions of hubs are not fetched: name a local folder")
    return value.get("path")


class Input(Part):
    """A model of a merge of whole models."""

    model: ModelRef
    parameters: dict[str, Any] = Field(default_factory=dict)


class SliceInput(Input):
    """A model's layers [first, last)."""

    layer_range: tuple[int, int]


class Slice(Part):
    """Some layers of the merged model."""

    sources: tuple[SliceInput, ...] = Field(min_length=1)
    base_model: ModelRef | None = None
    parameters: dict[str, Any] = Field(default_factory=dict)


class Module(Part):
    """All layers of a module."""

    slices: tuple[Slice, ...] | None = Field(default=None, min_length=1)
    models: tuple[Input, ...] | None = Field(default=None, min_length=1)
    parameters: dict[str, Any] = Field(default_factory=dict)

    @validate_model(mode="after")
    def _one_kind(self) -> Module:
        if (self.slices is None) == (self.models is None):
            raise ValueError("expected either slices or models")
        return self


class TokenSource(Part):
    """Where a token's row comes from: `kind` zero, or model_token."""

    kind: Literal["zero", "model_token"]
    model: ModelRef | None = None
    token: str | None = None
    token_id: int | None = Field(default=None, ge=0)

    @validate_model(mode="after")
    def _whole(self) -> TokenSource:
        named = [key for key in ("model", "token", "token_id") if getattr(self, key) is not None]
        if self.kind == "zero" and named:
            raise ValueError(f"a row of zeros has no {named[0]}")
        if self.kind == "model_token" and (self.model is None or len(named) != 2):
            raise ValueError("expected a model, and one of token and token_id")
        return self


class TokenSettings(Part):
    """The row of one token, for models that lack it, or with `force` for all."""

    source: Annotated[
        Annotated[TokenSource, Tag("rule")] | Annotated[ModelRef, Tag("model")],
        Discriminator(lambda value: "rule" if _is_rule(value) else "model"),
    ]
    force: bool = False


def _is_rule(value: Any) -> bool:
    return isinstance(value, TokenSource) or (isinstance(value, Mapping) and "kind" in value)


class TokenizerSettings(Part):
    """Whose tokens the merged model has."""

    source: str | ModelRef = "union"
    tokens: dict[str, TokenSettings] = Field(default_factory=dict)
    pad_to_multiple_of: int | None = Field(default=None, ge=1)


class MergekitFile(Part):
    """A whole file."""

    merge_method: str
    slices: tuple[Slice, ...] | None = Field(default=None, min_length=1)
    models: tuple[Input, ...] | None = Field(default=None, min_length=1)
    modules: dict[str, Module] | None = None
    base_model: ModelRef | None = None
    parameters: dict[str, Any] = Field(default_factory=dict)
    dtype: str | None = None
    out_dtype: str | None = None
    tokenizer_source: str | ModelRef | None = None
    tokenizer: TokenizerSettings | None = None
    chat_template: str | None = None

    @validate_model(mode="after")
    def _one_of_each(self) -> MergekitFile:
        if sum(part is not None for part in (self.slices, self.models, self.modules)) != 1:
            raise ValueError("expected one of models, slices and modules")
        if self.tokenizer is not None and self.tokenizer_source is not None:
            raise ValueError("expected one of tokenizer and tokenizer_source")
        if self.modules is not None and list(self.modules) != ["default"]:
            raise ValueError("modules: only models of the one module `default` are supported")
        return self

    @property
    def module(self) -> Module:
        """The only module, which need not be named."""
        if self.modules is not None:
            return self.modules["default"]
        return Module(slices=self.slices, models=self.models)


def is_mergekit(data: Any) -> bool:
    """Whether a document is meant for mergekit and not a recipe."""
    if not isinstance(data, Mapping) or {"evomerge_recipe", "default"} & data.keys():
        return False
    return bool({"merge_method", "slices", "modules"} & data.keys()) or isinstance(
        data.get("models"), list
    )


# --- parameters -----------------------------------------------------------------------------------


def parameter_problems(method: Method, document: Document) -> Iterator[Problem]:
    """Parameters that the method does not have, or not there, and values of another kind."""
    for location, of_one_model in _places_of_parameters(document.data):
        given: Any = document.part(*location).data
        if not isinstance(given, Mapping):
            continue  # the file's own model says so
        for name, value in given.items():
            where = document.where((*location, name))
            setting = method.setting(name)
            if name == IGNORED:
                continue
            if setting is None:
                what = f"{method.name} has no such parameter"
                yield Problem(where, what, nearest(str(name), method.names))
            elif of_one_model and not setting.each:
                what = "is one for all models; mergekit does not read it at a model"
                yield Problem(where, what, "put it under the parameters of the slice or the file")
            elif wrong := list(_wrong_values(value, setting.kind)):
                yield from (Problem(where, what) for what in wrong)
            elif setting.fixed and value != setting.default:
                what = f"{method.name} has no such parameter in evomerge"
                yield Problem(where, what, f"only {setting.default} can be said")


def _places_of_parameters(
    data: Any, location: tuple[str | int, ...] = ()
) -> Iterator[tuple[tuple[str | int, ...], bool]]:
    """Where mappings of parameters stand, and whether they are one model's."""
    if isinstance(data, list):
        for index, inner in enumerate(data):
            yield from _places_of_parameters(inner, (*location, index))
    elif isinstance(data, Mapping):
        for key, inner in data.items():
            if key == "parameters":
                yield (*location, key), "model" in data
            elif key in ("slices", "models", "modules", "sources", "default"):
                yield from _places_of_parameters(inner, (*location, key))


def _wrong_values(value: Any, kind: type) -> Iterator[str]:
    if isinstance(value, Mapping):
        value = [value]
    if isinstance(value, list) and value and all(isinstance(v, Mapping) for v in value):
        for condition in value:
            if extra := sorted(map(str, condition.keys() - {"filter", "value"})):
                hint = nearest(extra[0], ("filter", "value"))
                yield f"unknown key {extra[0]} beside filter and value ({hint})"
            elif "value" not in condition:
                yield "a filter without a value"
            else:
                yield from _wrong_values(condition["value"], kind)
        return
    for one in value if isinstance(value, list) else [value]:
        try:
            if not isinstance(one, _NUMBER_OR_NAME):
                raise TypeError
            _as(kind, one)
        except (TypeError, ValidationError):
            words = {float: "a number", int: "a whole number", bool: "true or false"}
            yield f"expected {words[kind]}, a list of such, or filters with values, got {one!r}"


def _as(kind: type, value: Any) -> Any:
    return TypeAdapter(kind).validate_python(value)  # as mergekit reads it: "1e-4" is a number


def value_for(scopes: Iterable[Settings], name: str, kind: type, tensor: str, t: float) -> Any:
    """What the most particular scope with a value says for a tensor; None if none has one.

    Args:
        scopes: from the most particular to the most general.
        name: the parameter's.
        kind: its type.
        tensor: the name that filters look into.
        t: how far the layer is into its slice, from 0 to 1; gradients are read there.
    """
    for scope in scopes:
        if name in scope:
            value = _evaluate(scope[name], kind, tensor, t)
            if value is not None:
                return value
    return None


def _evaluate(value: Any, kind: type, tensor: str, t: float) -> Any:
    if isinstance(value, Mapping):
        value = [value]
    if not isinstance(value, list):
        return _as(kind, value)
    if not value:
        return None
    if isinstance(value[0], Mapping):
        for condition in value:
            part = condition.get("filter")
            if part is None or part == "*" or part in tensor:
                return _evaluate(condition["value"], kind, tensor, t)
        return None
    steps = [_as(kind, one) for one in value]
    place = t * (len(steps) - 1)
    first = int(place)
    if kind is bool:
        return steps[first]
    share = place - first
    return (1 - share) * steps[first] + share * steps[min(len(steps) - 1, first + 1)]
