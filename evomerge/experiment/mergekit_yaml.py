"""mergekit's YAML file as a recipe that makes what mergekit 0.1.5 would make of it.

Every tensor's parameters are worked out as mergekit does it (precedence, filters, gradients), and
what tensors have in common is then said once: by layer and component where filters follow them,
by tensor where they cut finer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, get_args

from evomerge.checkpoints.anatomy import Anatomy, anatomy_of
from evomerge.checkpoints.layer_stack import are_alike, layer_settings
from evomerge.checkpoints.open import Checkpoint, open_checkpoint
from evomerge.checkpoints.prefixes import match_names
from evomerge.documents import Document, parse
from evomerge.errors import ConfigurationError, Problem, nearest
from evomerge.experiment.mergekit_file import (
    MergekitFile,
    ModelRef,
    Module,
    Settings,
    Slice,
    SliceInput,
    parameter_problems,
    value_for,
)
from evomerge.experiment.mergekit_names import Names
from evomerge.experiment.said_once import Place, said_once
from evomerge.merging.mergekit_methods import METHODS, REQUIRED, Method, parameters_of
from evomerge.recipe import DType, Merge, Recipe, Slot

Merges = dict[str, Merge]  # by the name of a merged tensor


def recipe_from_mergekit(
    document: Document, resolve: Callable[[str], Any], *, allow_pickle: bool = False
) -> tuple[Recipe, tuple[str, ...]]:
    """The recipe of a mergekit file, and notes on what is not quite as in mergekit.

    Args:
        document: the file; its models' paths are relative to it, or to the working folder.
        resolve: where a model called by a path is.
        allow_pickle: whether models may be pickles; the names of the base's tensors are read here,
            and those of models in slices.

    Raises:
        ConfigurationError: every problem of the file.
        ModelError: a model cannot be read.
    """
    file = parse(MergekitFile, document)
    method = METHODS.get(file.merge_method)
    if method is None:
        what = f"unknown method {file.merge_method!r}"
        where = document.where(("merge_method",))
        raise ConfigurationError(Problem(where, what, nearest(file.merge_method, METHODS)))
    problems = [*parameter_problems(method, document), *_dtype_problems(file, document)]
    if problems:
        raise ConfigurationError(problems)
    names = Names(file, document)
    base = names.of(file.base_model or _first(file.module))

    def opened(name: str) -> Checkpoint:
        return open_checkpoint(resolve(names.paths[name]), name=name, allow_pickle=allow_pickle)

    plan = _Plan(file, method, names, anatomy_of(opened(base)), opened, document)
    slots, merges = plan.slots_and_merges()
    recipe = Recipe.model_validate(
        {
            "base": base,
            "models": names.paths,
            **said_once(
                method.name, slots, merges, plan.places, None if plan.is_uneven else plan.num_layers
            ),
            "dtype": (file.out_dtype or file.dtype or "").removeprefix("torch.") or None,
            "tokenizer": names.tokenizer(base),
            "chat_template": file.chat_template or None,
        }
    )
    return recipe, tuple(_notes(file, method, merges))


def _first(module: Module) -> ModelRef:
    return (module.models or (module.slices or ())[0].sources)[0].model


def _dtype_problems(file: MergekitFile, document: Document) -> list[Problem]:
    name = (file.out_dtype or file.dtype or "float32").removeprefix("torch.")
    if name in get_args(DType):
        return []
    where = document.where(("out_dtype" if file.out_dtype else "dtype",))
    return [Problem(where, f"cannot write {name!r}", nearest(name, get_args(DType)))]


def _notes(file: MergekitFile, method: Method, merges: Mapping[str, Merge]) -> Iterable[str]:
    dtype = (file.dtype or "").removeprefix("torch.")
    if dtype in ("bfloat16", "float16"):
        yield f"mergekit computes in {dtype} here; evomerge in float32, rounding once at the end"
    if method.random and any(
        _least(merge.parameters.get("density", 1.0)) < 1 for merge in merges.values()
    ):
        yield "the random masks are evomerge's own: mergekit draws others"


def _least(value: Any) -> float:
    return min(value.values()) if isinstance(value, Mapping) else float(value)


# --- tensors --------------------------------------------------------------------------------------


@dataclass
class _Plan:
    """Walks over the merged model's tensors as mergekit does."""

    file: MergekitFile
    method: Method
    names: Names
    anatomy: Anatomy  # of the base
    opened: Callable[[str], Checkpoint]
    document: Document

    def __post_init__(self) -> None:
        self.slices = self._slices()
        self.places: dict[str, Place] = {}  # of every merged tensor
        self.missing: dict[str, None] = {}
        self._known: dict[ModelRef, tuple[int, list[dict[str, Any]]]] = {}
        if problems := [p for number, s in enumerate(self.slices) for p in self._wrong(number, s)]:
            raise ConfigurationError(problems)

    def slots_and_merges(self) -> tuple[list[Slot], Merges]:
        """The merged model's layers, and every tensor's complete merge.

        Raises:
            ConfigurationError: a parameter without a default has no value.
        """
        slots: list[Slot] = []
        merges: Merges = {}
        outside = [(n, p) for n, p in self.anatomy.places.items() if p.layer is None]
        for name, place in outside:
            before = place.component == "embedding" or (
                place.component in ("norm", "other") and "embed" in name
            )
            ends = self.slices[0 if before else -1]
            merges[name] = self._merge(ends, name, dict.fromkeys(self._models(ends), name), 0.0)
            self.places[name] = None, place.component
        inside: dict[int, list[str]] = {}
        for name, place in self.anatomy.places.items():
            if place.layer is not None:
                inside.setdefault(place.layer, []).append(name)
        for one in self.slices:
            first, last = one.sources[0].layer_range
            for offset in range(last - first):
                # mergekit reads a gradient over a single layer at its end.
                t = offset / (last - first - 1) if last - first > 1 else 1.0
                slot = self._slot(one, offset)
                read = slot.layer_of(self.base)
                for name in inside.get(read, ()):
                    number = len(slots)
                    made = self.anatomy.name_in_slot(name, number)
                    inputs = {
                        model: self.anatomy.name_in_layer(name, slot.layer_of(model))
                        for model in self._models(one)
                    }
                    merges[made] = self._merge(one, made, inputs, t)
                    self.places[made] = number, self.anatomy.places[name].component
                slots.append(slot)
        if self.missing:
            where = str(self.document.path or "")
            raise ConfigurationError(
                Problem(where, f"{self.method.name} needs {what}") for what in self.missing
            )
        return slots, merges

    @property
    def base(self) -> str:
        """The recipe's base: mergekit's, or else the first model."""
        return next(iter(self.names.paths))

    def _models(self, one: Slice) -> list[str]:
        return [self.names.of(source.model) for source in one.sources]

    def _slot(self, one: Slice, offset: int) -> Slot:
        layers = {
            self.names.of(source.model): source.layer_range[0] + offset for source in one.sources
        }
        own = layers.get(self.base)
        if own is None:
            first = one.sources[0]
            own = self._base_layer_like(first.model, first.layer_range[0] + offset)
        others = {model: layer for model, layer in layers.items() if layer != own}
        return Slot(layer=own, layers=others)

    def _merge(self, one: Slice, made: str, inputs: Mapping[str, str], t: float) -> Merge:
        """The merge of a tensor, from all scopes that say something of it."""
        general = (one.parameters, self.file.module.parameters, self.file.parameters)
        models = list(inputs)
        has_base = self.file.base_model is not None and self.base in models
        apart = has_base and self.method.base != "ignored"
        sources = [model for model in models if not (apart and model == self.base)]
        shared: dict[str, Any] = {}
        each: dict[str, dict[str, Any]] = {source: {} for source in sources}
        own = {self.names.of(source.model): source.parameters for source in one.sources}
        for setting in self.method.settings:
            if not setting.each:
                found = value_for(general, setting.name, setting.kind, made, t)
                shared[setting.name] = self._or_default(found, setting.default, setting.name)
                continue
            for source in sources:
                scopes: tuple[Settings, ...] = (own[source], *general)
                found = value_for(scopes, setting.name, setting.kind, inputs[source], t)
                what = f"{setting.name} for {source}"
                each[source][setting.name] = self._or_default(found, setting.default, what)
        parameters = parameters_of(self.method, shared, each, deltas=apart)
        return Merge(sources=tuple(sources), parameters=parameters)

    def _or_default(self, value: Any, default: Any, what: str) -> Any:
        if value is not None:
            return value
        if default is REQUIRED:
            self.missing[f"a value of {what}"] = None
            return 0
        return default

    @property
    def num_layers(self) -> int:
        """Of the base."""
        return self.anatomy.num_layers

    @property
    def is_uneven(self) -> bool:
        """Whether a model of a slice has more or fewer layers than the base."""
        return any(count != self.num_layers for count, _ in self._known.values())

    def _known_of(self, ref: ModelRef) -> tuple[int, list[dict[str, Any]]]:
        """How many layers a model of a slice has, and what its config says of each."""
        if ref not in self._known:
            name = self.names.of(ref)
            if self.file.module.slices is None or self.names.is_adapter(name):
                name = self.base  # without slices all have as many
            opened = self.opened(name)
            matched = match_names(opened.names, self.anatomy.places)
            names = set(opened.names) - set(matched.names.values()) | matched.names.keys()
            count = self.anatomy.num_layers_of(names)
            self._known[ref] = count, layer_settings(opened.config, count)
        return self._known[ref]

    def _num_layers(self, ref: ModelRef) -> int:
        return self._known_of(ref)[0]

    def _base_layer_like(self, ref: ModelRef, layer: int) -> int:
        """The base's layer that says which tensors a slot has, where the base is not in it.

        The one of that number, or else the last, if it is of the same kind; or the last that is.
        """
        count, settings = self._known_of(ref)
        kinds = layer_settings(self.opened(self.base).config, self.num_layers)
        nearest_one = min(layer, self.num_layers - 1)
        alike = [nearest_one, *reversed(range(self.num_layers))]
        wanted = settings[layer] if layer < count else {}
        return next((i for i in alike if are_alike(wanted, kinds[i])), nearest_one)

    def _slices(self) -> tuple[Slice, ...]:
        module = self.file.module
        if module.slices is not None:
            return module.slices
        whole = (0, self.anatomy.num_layers)
        sources = [
            SliceInput(model=one.model, parameters=one.parameters, layer_range=whole)
            for one in module.models or ()
        ]
        base = self.file.base_model
        if base is not None and base not in [source.model for source in sources]:
            sources.append(SliceInput(model=base, layer_range=whole))
        return (Slice(sources=tuple(sources)),)

    def _wrong(self, number: int, one: Slice) -> Iterable[Problem]:
        where = f"{self.document.path or ''}: slice {number}"
        ranges = [source.layer_range for source in one.sources]
        for source in one.sources:
            (first, last), count = source.layer_range, self._num_layers(source.model)
            if not 0 <= first < last <= count and (first, last) != (0, count):
                what = f"layer_range [{first}, {last}] of {source.model.path}, which has {count}"
                yield Problem(where, f"{what} layers")
        if len({last - first for first, last in ranges}) > 1:
            yield Problem(where, f"its sources have different numbers of layers: {ranges}")
        models = self._models(one)
        if twice := sorted({model for model in models if models.count(model) > 1}):
            yield Problem(where, f"{', '.join(twice)} stands twice")
        own = one.base_model
        if own is not None and own != self.file.base_model:
            yield Problem(where, "a base_model of its own is not supported: one base is for all")
        if self.method.base == "needed" and (
            self.file.base_model is None or self.base not in models
        ):
            yield Problem(where, f"{self.method.name} needs base_model among the sources")
