"""What may stand in the file of mergekit-evolve (mergekit 0.1.5).

mergekit ignores keys that it does not know and stops at the first thing that it cannot do, some of
it in the middle of the search; here all of it is told at once, before anything is merged.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import Field
from pydantic import model_validator as validate_model

from evomerge.documents import Misfit, refuse
from evomerge.errors import nearest
from evomerge.experiment.mergekit_file import ModelRef, Part

# The methods of mergekit-evolve, and what of each it searches.
SEARCHED = {
    "linear": ("weight",),
    "task_arithmetic": ("weight",),
    "ties": ("weight", "density"),
    "dare_ties": ("weight", "density"),
    "slerp": ("t",),
}
INTO_BASE = ("task_arithmetic", "ties", "dare_ties")  # methods that merge into base_model


class Genome(Part):
    """What is searched. normalize: by default whatever the method's own default is there."""

    models: tuple[ModelRef, ...]
    merge_method: str
    base_model: ModelRef | None = None
    tokenizer_source: str | None = None
    layer_granularity: int = Field(default=0, ge=0)  # layers of a group; 0: all are one
    normalize: bool | None = None
    allow_negative_weights: bool = False
    filters: tuple[str, ...] | None = None
    smooth: bool = False

    @property
    def base(self) -> ModelRef:
        """The base here: `base_model`, or the first model (without its adapter)."""
        return self.base_model or ModelRef(path=self.models[0].path)

    @property
    def experts(self) -> tuple[ModelRef, ...]:
        """What is merged: all models; or those that are merged into the base."""
        if self.merge_method not in INTO_BASE:
            return self.models
        return tuple(model for model in self.models if model != self.base_model)

    @property
    def divides(self) -> bool:
        """Whether weights are divided by their sum, so that their ratios alone count."""
        if self.normalize is None:
            return self.merge_method in ("linear", "ties", "dare_ties")
        return self.normalize

    @property
    def parts(self) -> tuple[str, ...]:
        """The filters that tensors can reach: `*` fits all that are left."""
        every = self.filters or ()
        return every[: every.index("*")] if "*" in every else every

    @validate_model(mode="after")
    def _sensible(self) -> Genome:
        refuse(self, self._misfits())
        return self

    def _misfits(self) -> Iterator[Misfit]:
        method = self.merge_method
        if method not in SEARCHED:
            hint = nearest(method, SEARCHED)
            yield Misfit(("merge_method",), f"mergekit-evolve has no {method!r}", hint)
            return
        if not self.models:
            yield Misfit(("models",), "names no model")
            return
        for number, model in enumerate(self.models):
            if model in self.models[:number]:
                yield Misfit(("models", number), "stands twice")
            if model.lora is not None and model.path != self.base.path:
                what = f"an adapter is merged as a change of the base, which is {self.base.path}"
                yield Misfit(("models", number), what, "apply the adapter first")
        yield from self._base_misfits(method)
        for number, part in enumerate(self.filters or ()):
            if part in ("", *(self.filters or ())[:number]):
                what = "fits every tensor: the rest needs none" if not part else "stands twice"
                yield Misfit(("filters", number), what)
        if method == "slerp":
            if len(self.models) < 2:
                yield Misfit(("models",), "slerp is between two: name more")
            for key in ("smooth", "filters"):
                if getattr(self, key):
                    yield Misfit((key,), "goes with the other methods, not with slerp")
        elif method == "linear" and len(self.models) < 2:
            yield Misfit(("models",), "the mean of one model is that model: name more")

    def _base_misfits(self, method: str) -> Iterator[Misfit]:
        if self.base_model is None:
            if method in INTO_BASE:
                yield Misfit(("base_model",), f"{method} needs one")
            return
        if self.base_model.lora is not None:
            yield Misfit(("base_model",), "a model with an adapter cannot be the base")
        if method not in INTO_BASE and self.base_model not in self.models:
            what = f"{method} has no part for it: mergekit stops at the first merge"
            yield Misfit(("base_model",), what, "add it to models, or leave it out")
        if not self.experts:
            yield Misfit(("models",), "nothing to merge beside the base: name more")


class TaskEntry(Part):
    """A task of lm-eval, as its name alone or with more. metric: `metric,filter`."""

    name: str
    weight: float = 1.0
    metric: str = "acc,none"

    @validate_model(mode="before")
    @classmethod
    def _name_alone(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @validate_model(mode="after")
    def _metric_and_filter(self) -> TaskEntry:
        if self.metric.count(",") != 1 or not all(self.metric.split(",")):
            what = f"expected a metric and a filter, got {self.metric!r}"
            refuse(self, [Misfit(("metric",), what, "such as acc,none")])
        return self


class EvolveFile(Part):
    """A whole file. task_search_path: folders with tasks' files, which mergekit takes as options.

    They are relative to the file.
    """

    genome: Genome
    tasks: tuple[TaskEntry, ...]
    limit: int | None = Field(default=None, ge=1)
    num_fewshot: int | None = Field(default=None, ge=0)
    shuffle: bool = False
    random_init: bool = False
    apply_chat_template: bool = True
    fewshot_as_multiturn: bool = True
    task_search_path: str | tuple[str, ...] = ()

    @property
    def folders(self) -> tuple[str, ...]:
        """Where to look for tasks."""
        path = self.task_search_path
        return (path,) if isinstance(path, str) else path

    @validate_model(mode="after")
    def _some_weight(self) -> EvolveFile:
        if not any(task.weight for task in self.tasks):
            what = "all have weight 0: nothing is good" if self.tasks else "names no task"
            refuse(self, [Misfit(("tasks",), what)])
        return self


def is_evolve_file(data: Any) -> bool:
    """Whether a document is mergekit-evolve's and no experiment."""
    return (
        isinstance(data, Mapping)
        and "genome" in data
        and not data.keys() & {"base", "experts", "space", "fitness"}
    )
