"""What a layer slot holds: the base's layer, one expert's, or a merge of several."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field, model_validator

from evomerge.documents import Misfit, refuse
from evomerge.errors import Problem
from evomerge.genes import AtLeast, Choice, Condition, Flag, Gene, OneOf, Value
from evomerge.merging import OPERATORS, unknown
from evomerge.recipe import Merge, OperatorName
from evomerge.search_spaces.config import count_problems
from evomerge.search_spaces.merged_option import MergedOption, OptionConfig
from evomerge.search_spaces.searched import Varied, as_said, parameter_misfits

Merges = dict[Any, Merge]  # of a slot, by component
COMPONENTS = ("attention", "mlp", "norm", "other")


class ContentsConfig(BaseModel):
    """What layers may be.

    choose: `base`, nothing else; `one` of the experts, of the base (if `base`), and of `merges`; or
    `several`: a bit for each expert, where no bit is the base's layer, one bit that expert's, and
    two or more their merge by `operator`, with what of it is `searched`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    choose: Literal["base", "one", "several"] = "one"
    experts: bool = True
    base: bool = False
    merges: dict[str, OptionConfig] = Field(default_factory=dict)
    operator: OperatorName = "task_arithmetic"
    search: dict[str, Varied] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _known(self) -> ContentsConfig:
        refuse(self, self._misfits())
        return self

    def _misfits(self) -> Iterator[Misfit]:
        if self.choose != "one":
            for key in ("base", "merges"):
                if getattr(self, key):
                    yield Misfit((key,), "goes with `choose: one`")
            if "experts" in self.model_fields_set:
                yield Misfit(("experts",), "goes with `choose: one`")
        if self.choose != "several":
            for key in {"operator", "search"} & self.model_fields_set:
                yield Misfit((key,), "goes with `choose: several`")
        if self.choose == "one" and not (self.experts or self.merges):
            yield Misfit(("merges",), "nothing to choose from: name some, or leave the experts in")
        if self.choose == "several":
            if self.operator not in OPERATORS:
                yield Misfit(("operator",), *unknown(self.operator))
                return
            for name, varied in self.search.items():
                for misfit in varied.range_misfits():
                    yield Misfit(("search", name, *misfit.location), misfit.what)
                yield from parameter_misfits(self.operator, name, varied, ("search", name))

    def problems(self, experts: Sequence[str]) -> list[Problem]:
        """Why these experts cannot be chosen from."""
        problems = []
        if self.choose == "one":
            for name, option in self.merges.items():
                found = option.problems(experts)
                problems += [Problem(f"space.layers.merges.{name}", p.what, p.hint) for p in found]
                if name in (*experts, "base"):
                    what = "a model is called so: call the merge otherwise"
                    problems.append(Problem(f"space.layers.merges.{name}", what))
        elif self.choose == "several" and len(experts) > 1:
            what = "a gene of every layer is called so: call the expert otherwise"
            for name in sorted({*experts} & self.search.keys()):
                problems.append(Problem(f"experts.{name}", what))
            low = OPERATORS[self.operator].min_sources
            high = OPERATORS[self.operator].max_sources
            if low > 2 or (high is not None and high < len(experts)):
                problems += count_problems(self.operator, experts)
        return problems


class Contents(Protocol):
    """Genes of one slot (or of one group of slots), and what they mean."""

    def genes(self, prefix: str, when: Condition | None) -> list[Gene]:
        """What a slot's contents hang on; all of them matter only `when`."""
        ...

    def merges(self, values: Sequence[Value]) -> Merges:
        """A slot's merges, for one value for each of the genes; the recipe's default is the base.

        The result is not to be changed: slots may share it.
        """
        ...

    def read(self, merges: Merges) -> dict[int, Value]:
        """The values, by the number of the gene, that give these merges.

        Raises:
            ValueError: none do.
        """
        ...

    def alone(self, expert: str) -> dict[int, Value] | None:
        """The values that give an expert's own layer; None if there are none."""
        ...


def make_contents(config: ContentsConfig, base: str, experts: Sequence[str]) -> Contents:
    """The contents that a file describes."""
    if config.choose == "base":
        return OnlyBase()
    if config.choose == "several":
        return Several(config, experts)
    return One(config, base, experts)


class OnlyBase:
    """The base's own layers: nothing to choose."""

    def genes(self, prefix: str, when: Condition | None) -> list[Gene]:
        """None (see `Contents`)."""
        del prefix, when
        return []

    def merges(self, values: Sequence[Value]) -> Merges:
        """Nothing: the recipe's default (see `Contents`)."""
        del values
        return {}

    def read(self, merges: Merges) -> dict[int, Value]:
        """Of nothing (see `Contents`)."""
        if merges:
            raise ValueError("the recipe merges in a layer that is to be the base's")
        return {}

    def alone(self, expert: str) -> dict[int, Value] | None:
        """There is none (see `Contents`)."""
        del expert
        return None


class One:
    """One of some models and merges. Han et al. 2025, RMM, arXiv:2503.21272."""

    def __init__(self, config: ContentsConfig, base: str, experts: Sequence[str]) -> None:
        self._models = [*(["base"] if config.base else []), *(experts if config.experts else ())]
        self._merged = {n: MergedOption(option, experts) for n, option in config.merges.items()}
        self._names = (*self._models, *self._merged)
        self._alone: dict[str, Merges] = {
            name: {"default": Merge.of_valid(sources=(name,))} for name in self._models
        }
        if config.base:
            self._alone["base"] = {}
        del base

    def genes(self, prefix: str, when: Condition | None) -> list[Gene]:
        """A choice, and the parameters of each merge, which matter when it is chosen."""
        found: list[Gene] = []
        if len(self._names) > 1:
            found.append(Choice(f"{prefix}.layer", self._names, when))
        for name, option in self._merged.items():
            chosen: Condition | None = when
            if len(self._names) > 1:
                chosen = OneOf(f"{prefix}.layer", (name,))
            label = f"{prefix}.{name}" if len(self._names) > 1 else prefix
            found += option.genes(label, chosen)
        return found

    def merges(self, values: Sequence[Value]) -> Merges:
        """See `Contents`."""
        start = 1 if len(self._names) > 1 else 0
        chosen = str(values[0]) if start else self._names[0]
        if chosen in self._alone:
            return self._alone[chosen]
        for name, option in self._merged.items():
            if name == chosen:
                return option.merges(values[start : start + option.num_genes])
            start += option.num_genes
        raise ValueError(f"no option {chosen!r}")

    def read(self, merges: Merges) -> dict[int, Value]:
        """See `Contents`."""
        start = 1 if len(self._names) > 1 else 0
        for name, known in self._alone.items():
            if merges == known:
                return {0: name} if start else {}
        for name, option in self._merged.items():
            try:
                own = option.read(merges)
            except ValueError:
                start += option.num_genes
                continue
            chosen: dict[int, Value] = {0: name} if len(self._names) > 1 else {}
            return chosen | {start + i: value for i, value in own.items()}
        raise ValueError(f"the recipe merges a layer as none of {', '.join(self._names)}")

    def alone(self, expert: str) -> dict[int, Value] | None:
        """See `Contents`."""
        if expert in self._models:
            return {0: expert} if len(self._names) > 1 else {}
        start = 1 if len(self._names) > 1 else 0
        for name, option in self._merged.items():
            own = option.alone(expert)
            if own is not None:
                chosen: dict[int, Value] = {0: name} if len(self._names) > 1 else {}
                return chosen | {start + i: value for i, value in own.items()}
            start += option.num_genes
        return None


class Several:
    """A bit for each expert. Su et al. 2025, GPTailor, arXiv:2506.20480."""

    def __init__(self, config: ContentsConfig, experts: Sequence[str]) -> None:
        self._config = config
        self._experts = tuple(experts)
        self._parameters = {
            name: (OPERATORS[config.operator].parameter(name), varied)
            for name, varied in config.search.items()
        }
        self._alone = [{"default": Merge.of_valid(sources=(name,))} for name in experts]

    def genes(self, prefix: str, when: Condition | None) -> list[Gene]:
        """The bits, and the merge's parameters, which matter where it merges two or more."""
        bits = tuple(f"{prefix}.{expert}" for expert in self._experts)
        found: list[Gene] = [Flag(bit, when) for bit in bits]
        merged = AtLeast(bits, 2)  # bits that do not matter are not set
        for name, (parameter, varied) in self._parameters.items():
            found.append(varied.gene(f"{prefix}.{name}", parameter, merged))
        return found

    def merges(self, values: Sequence[Value]) -> Merges:
        """See `Contents`."""
        count = len(self._experts)
        chosen = [i for i in range(count) if values[i]]
        if not chosen:
            return {}
        if len(chosen) == 1:
            return self._alone[chosen[0]]
        merge = Merge.of_valid(
            operator=self._config.operator,
            sources=tuple(self._experts[i] for i in chosen),
            parameters=dict(zip(self._parameters, map(as_said, values[count:]), strict=False)),
        )
        return {"default": merge}

    def read(self, merges: Merges) -> dict[int, Value]:
        """See `Contents`."""
        merge = merges.get("default", Merge(sources=()))
        sources = merge.sources or ()
        if set(sources) - set(self._experts) or set(merges) - {"default"}:
            raise ValueError(f"the recipe merges {sources} in a layer")
        found: dict[int, Value] = {i: e in sources for i, e in enumerate(self._experts)}
        if len(sources) > 1:
            for i, name in enumerate(self._parameters):
                value = merge.parameters.get(name)
                if value is None or isinstance(value, dict):
                    raise ValueError(f"one {name} is needed, and the recipe has {value}")
                found[len(self._experts) + i] = value
        return found

    def alone(self, expert: str) -> dict[int, Value] | None:
        """See `Contents`."""
        return {i: name == expert for i, name in enumerate(self._experts)}
