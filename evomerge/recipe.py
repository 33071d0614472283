"""The recipe: a merged model, described completely.

A recipe says which models go in, and for every layer slot and every tensor group which operator
merges them, with which parameters. It knows nothing of the search that found it, can be written by
hand, and has one fingerprint wherever it is read.

How a tensor finds its merge, from the most particular to the most general:

    any tensor                    tensors[its name in the merged model], then as below
    a tensor of layer slot i      slots[i].merges[component], slots[i].merges["default"], default
    a tensor outside the layers   outside[component], default

A particular merge inherits what it leaves out: the operator, the sources, and each parameter (one
that has a value for each source is inherited whole or not at all; a merge that names another
operator inherits no parameters, which would be that operator's). Without sources, they are all
models but the base.

Slots are the layers of the merged model, in order. A model's layer may stand in several of them or
in none, and models may give different layers to one slot: so layers are repeated, left out,
reordered, and stacked from several models.

`segments` takes the place of all of this: it says of every stretch of the flattened parameters, in
the order of merging/flat_order.py, which linear combination of the models it is.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from functools import cache, cached_property
from itertools import pairwise
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

Number = bool | float  # 1 and 1.0 say the same: whole numbers become floats
ParameterValue = Number | str | None | dict[str, Number]
LayerGroup = Literal["default", "attention", "mlp", "norm", "other"]
OutsideGroup = Literal["embedding", "head", "norm", "other"]
LayerNumber = Annotated[int, Field(ge=0)]
Stop = Annotated[int, Field(gt=0, lt=2**63)]
DType = Literal["float32", "bfloat16", "float16"]
PIPE = "|"  # between an operator's name and those of the post-steps behind it
UNION = "union"  # the tokens of all models


def _spelt_once(operator: str) -> str:
    """`ties|lines` and `ties | lines` are one operator, and make one fingerprint."""
    return f" {PIPE} ".join(part.strip() for part in operator.split(PIPE))


OperatorName = Annotated[str, AfterValidator(_spelt_once)]


class Frozen(BaseModel):
    """Immutable, and strict about keys: a misspelt one is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @classmethod
    def of_valid(cls, **values: Any) -> Self:
        """What validation would make of values that are known to be valid and complete in type.

        As pydantic's `model_construct`, in a third of its time: a search makes some hundred merges
        for each candidate.
        """
        fixed, made, names = _defaults(cls)
        if len(values) < len(names):
            missing = {name: make() for name, make in made.items() if name not in values}
            values = {**fixed, **missing, **values}
        instance = cls.__new__(cls)
        put = object.__setattr__
        put(instance, "__dict__", values)
        put(instance, "__pydantic_fields_set__", names)
        put(instance, "__pydantic_extra__", None)
        put(instance, "__pydantic_private__", None)
        return instance


@cache
def _defaults(
    kind: type[BaseModel],
) -> tuple[dict[str, Any], dict[str, Callable[[], Any]], set[str]]:
    """A model's default values, what makes those that may not be shared, and all its names."""
    fixed: dict[str, Any] = {}
    made: dict[str, Any] = {}
    for name, field in kind.model_fields.items():
        if field.default_factory is not None:
            made[name] = field.default_factory
        elif not field.is_required():
            fixed[name] = field.default
    return fixed, made, set(kind.model_fields)


class Merge(Frozen):
    """One operator applied to some sources; fields left out are inherited."""

    operator: OperatorName | None = None
    sources: tuple[str, ...] | None = None
    parameters: dict[str, ParameterValue] = Field(default_factory=dict)

    def over(self, general: Merge) -> Merge:
        """This merge, with what it leaves out taken from a more general one."""
        same = self.operator == general.operator or None in (self.operator, general.operator)
        return Merge.of_valid(
            operator=self.operator or general.operator,
            sources=self.sources if self.sources is not None else general.sources,
            parameters={**(general.parameters if same else {}), **self.parameters},
        )


SEGMENTS_DEFAULT = Merge(operator="linear")  # of recipes with segments, which override it


class Slot(Frozen):
    """One layer of the merged model: which layers it is made of, and how they are merged.

    layer: what every model gives that `layers` does not name. The base's decides which tensors the
    slot has, also where no merge reads the base.
    input_scale: the hidden states that enter the layer are multiplied by it (Akiba et al. 2024,
    https://arxiv.org/abs/2403.13187). Zero would forget the prompt, so it is positive.
    branch_scale: what the layer's residual branches add to the stream is multiplied by it: 0 leaves
    the layer out.
    """

    layer: int = Field(ge=0)
    layers: dict[str, LayerNumber] = Field(default_factory=dict)
    merges: dict[LayerGroup, Merge] = Field(default_factory=dict)
    input_scale: float = Field(default=1.0, gt=0)
    branch_scale: float = 1.0

    def layer_of(self, model: str) -> int:
        """The layer that a model gives to this slot."""
        return self.layers.get(model, self.layer)


class Match(Frozen):
    """Another model, whose order of hidden units a model is to have before it is merged.

    axes: for networks of unknown kind, by tensor, a name for each axis: axes of one name are
    permuted together, an axis without a name stays.
    """

    model: str
    axes: dict[str, tuple[str | None, ...]] | None = None

    @classmethod
    def of(cls, match: str | Match) -> Match:
        """A name in full."""
        return cls(model=match) if isinstance(match, str) else match


class ModelSource(Frozen):
    """Where a model is, and what it is: the sha256 of its tensors, once it is known.

    match: the model whose hidden units' order it is brought into (see docs/matching.md); the sha256
    is of what comes out.
    """

    path: str
    sha256: str | None = None
    match: str | Match | None = None

    @field_validator("match")
    @classmethod
    def _said_shortly(cls, match: str | Match | None) -> str | Match | None:
        """One way to say what a name alone says, so that equal recipes have equal fingerprints."""
        return match.model if isinstance(match, Match) and match.axes is None else match

    @property
    def content(self) -> Any:
        """What the model is, as far as it is known: never where, if its sha256 is known."""
        if self.sha256 is not None or self.match is None:
            return self.sha256 or self.path
        return [self.path, Match.of(self.match).model_dump(mode="json")]


class TokenRow(Frozen):
    """Where models that lack a token get its row from.

    model: whose row it is; None for zeros. token, id: of which token there, or which row; the same
    token's by default. force: for models that have the token, too.
    """

    model: str | None = None
    token: str | None = None
    id: int | None = Field(default=None, ge=0)
    force: bool = False

    @model_validator(mode="after")
    def _of_a_model(self) -> TokenRow:
        if self.model is None and (self.token is not None or self.id is not None):
            raise ValueError("token and id are a model's: name it")
        if self.token is not None and self.id is not None:
            raise ValueError("expected one of token and id")
        return self


class TokenizerSpec(Frozen):
    """The merged model's tokens.

    source: whose they are, a model's name or UNION. tokens: rows to take where the usual rule would
    take others; tokens that its tokenizer lacks are added. pad_to_multiple_of: the number of rows.
    """

    source: str
    tokens: dict[str, TokenRow] = Field(default_factory=dict)
    pad_to_multiple_of: int | None = Field(default=None, ge=1)

    @classmethod
    def of(cls, tokenizer: str | TokenizerSpec) -> TokenizerSpec:
        """A name in full."""
        return cls(source=tokenizer) if isinstance(tokenizer, str) else tokenizer


class Segments(Frozen):
    """Linear combinations of models over stretches of the flattened parameters.

    stops: where each stretch ends, ascending; the last one is the number of all entries.
    weights: by model, a coefficient for each stretch. A model with zeros alone is left out, so that
    equal merges have equal fingerprints.
    """

    stops: tuple[Stop, ...] = Field(min_length=1)
    weights: dict[str, tuple[float, ...]]

    @field_validator("stops")
    @classmethod
    def _ascending(cls, stops: tuple[int, ...]) -> tuple[int, ...]:
        for before, after in pairwise(stops):
            if after <= before:
                raise ValueError(f"expected ascending numbers, got {after} after {before}")
        return stops

    @field_validator("weights")
    @classmethod
    def _one_for_each_stretch(
        cls, weights: dict[str, tuple[float, ...]], info: ValidationInfo
    ) -> dict[str, tuple[float, ...]]:
        wanted = len(info.data.get("stops", ()))  # none where the stops are wrong themselves
        for model, given in weights.items():
            if wanted and len(given) != wanted:
                what = f"{model}: expected {wanted} coefficients, one for each stretch"
                raise ValueError(f"{what}, got {len(given)}")
        used = {m: tuple(w + 0.0 for w in given) for m, given in weights.items() if any(given)}
        if not used:
            raise ValueError("all coefficients are 0")
        return used


class Recipe(Frozen):
    """A merged model, described completely (see the module's text for the precedence)."""

    evomerge_recipe: Literal[1] = 1
    base: str
    models: dict[str, ModelSource]
    default: Merge
    outside: dict[OutsideGroup, Merge] = Field(default_factory=dict)
    slots: tuple[Slot, ...] | None = None
    tensors: dict[str, Merge] = Field(default_factory=dict)
    segments: Segments | None = None
    dtype: DType | None = None
    tokenizer: str | TokenizerSpec | None = None  # whose tokens the merged model has
    chat_template: str | None = None  # Jinja's text, or `auto`; by default the tokenizer's own
    mask_seed: int = Field(default=0, ge=0)
    calibration: str | None = None  # sha256 of the texts that operators look at

    @model_validator(mode="before")
    @classmethod
    def _segments_are_linear(cls, data: Any) -> Any:
        """Segments need no default; what stands there all the same is one thing alone."""
        if isinstance(data, Mapping) and data.get("segments") is not None:
            return {"default": SEGMENTS_DEFAULT, **data}
        return data

    @field_validator("models", mode="before")
    @classmethod
    def _paths_may_stand_alone(cls, models: Any) -> Any:
        if not isinstance(models, Mapping):
            return models
        return {k: {"path": v} if isinstance(v, str) else v for k, v in models.items()}

    @field_validator("tokenizer")
    @classmethod
    def _said_shortly(cls, tokenizer: str | TokenizerSpec | None) -> str | TokenizerSpec | None:
        """One way to say what a name alone says, so that equal recipes have equal fingerprints."""
        if isinstance(tokenizer, TokenizerSpec) and tokenizer == TokenizerSpec.of(tokenizer.source):
            return tokenizer.source
        return tokenizer

    @model_validator(mode="after")
    def _names_exist(self) -> Recipe:
        if self.default.operator is None:
            raise ValueError("default: an operator is needed")
        used = {self.base, *(name for merge in self.merges() for name in merge.sources or ())}
        used.update(name for slot in self.slots or () for name in slot.layers)
        used.update(match.model for match in self.matches.values())
        used.update(self.segments.weights if self.segments is not None else ())
        if self.tokenizer is not None:
            spec = TokenizerSpec.of(self.tokenizer)
            used.update({spec.source} - {UNION})
            used.update(row.model for row in spec.tokens.values() if row.model is not None)
        if UNION in self.models:
            raise ValueError(f"a model cannot be called {UNION!r}, which stands for all models")
        if unknown := sorted(used - set(self.models)):
            known = ", ".join(sorted(self.models))
            raise ValueError(f"unknown model(s) {', '.join(unknown)}; models: {known}")
        return self

    @model_validator(mode="after")
    def _segments_stand_alone(self) -> Recipe:
        if self.segments is None:
            return self
        beside = [name for name in ("slots", "outside", "tensors") if getattr(self, name)]
        if self.default != SEGMENTS_DEFAULT:
            beside.insert(0, "default")
        if beside:
            raise ValueError(f"segments say how all is merged: leave out {', '.join(beside)}")
        return self

    @property
    def matches(self) -> dict[str, Match]:
        """The models that are matched to others first."""
        sources = self.models.items()
        return {name: Match.of(s.match) for name, s in sources if s.match is not None}

    def merges(self) -> list[Merge]:
        """Every merge as it is written, with what it leaves out left out; `default` first."""
        inside = [merge for slot in self.slots or () for merge in slot.merges.values()]
        return [self.default, *self.outside.values(), *inside, *self.tensors.values()]

    @property
    def is_scaled(self) -> bool:
        """Whether a slot scales its layer's input or branches."""
        return any(slot.input_scale != 1 or slot.branch_scale != 1 for slot in self.slots or ())

    def keeps_layers(self, num_layers: int) -> bool:
        """Whether slot i is layer i of every model, for models with `num_layers` layers.

        Scales do not count: a layer that is scaled is where it was (see `is_scaled`).
        """
        if self.slots is None:
            return True
        return len(self.slots) == num_layers and all(
            slot.layer == i and all(layer == i for layer in slot.layers.values())
            for i, slot in enumerate(self.slots)
        )

    def merge_for(self, slot: int | None, component: str, tensor: str | None = None) -> Merge:
        """The complete merge of one tensor group; `slot` is None outside the layers.

        tensor: a tensor's name in the merged model, for what `tensors` says of it alone.
        """
        if slot is None:
            chain = [self.outside.get(component)]  # type: ignore[call-overload]
        elif self.slots is None:
            chain = []
        else:
            merges = self.slots[slot].merges
            chain = [merges.get("default"), merges.get(component)]  # type: ignore[call-overload]
        if tensor is not None:
            chain.append(self.tensors.get(tensor))
        merge = self.default
        for particular in chain:
            if particular is not None:
                merge = particular.over(merge)
        if merge.sources is None:
            # Sorted, as in the canonical JSON: a sum's last bits depend on its order.
            experts = tuple(sorted(name for name in self.models if name != self.base))
            merge = Merge(sources=experts).over(merge)
        return merge

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of the canonical JSON; models count by content where it is known, not by path."""
        data = self._data()
        data["models"] = {name: source.content for name, source in self.models.items()}
        return hashlib.sha256(canonical_json(data).encode()).hexdigest()

    def to_json(self) -> str:
        """Canonical JSON: sorted keys, no blanks, what is unset left out."""
        return canonical_json(self._data())

    def _data(self) -> dict[str, Any]:
        """What is set, as JSON values."""
        return self.model_dump(mode="json", exclude_defaults=True) | {"evomerge_recipe": 1}

    @classmethod
    def from_json(cls, text: str) -> Recipe:
        """The inverse of `to_json`."""
        return cls.model_validate_json(text)


def canonical_json(value: Any) -> str:
    """One text for one value: sorted keys, shortest exact floats, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
