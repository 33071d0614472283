"""The readings that there are, and how each is made from its options."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field, field_validator

from evomerge.documents import Document, Misfit, parse, refuse
from evomerge.errors import ConfigurationError, nearest
from evomerge.fitness.estimators.aipw import Aipw
from evomerge.fitness.estimators.anchors import Anchors
from evomerge.fitness.estimators.column import ColumnReading, RandomItems, Side
from evomerge.fitness.estimators.estimate import EstimatorOptions, Items
from evomerge.fitness.estimators.reading import ByTask, Reading
from evomerge.fitness.estimators.stratified import Stratified
from evomerge.records import Objective

MakeReading = Callable[[Sequence[Objective], Items, int, Any], Reading]  # (..., seed, options)


HISTORY = "history"  # instead of a pool's file: what the run itself has measured


@dataclass(frozen=True)
class ReadingKind:
    """A reading that can be named in a fitness file; its options say how, not how many items."""

    summary: str
    options: type[EstimatorOptions]
    make: MakeReading


@dataclass(frozen=True)
class PerColumn:
    """Makes the same reading for every column: `column(side, seed=, num_items=, **options)`."""

    column: Any
    needs_references: bool = True
    needs_history: bool = False

    def __call__(
        self, objectives: Sequence[Objective], items: Items, seed: int, options: Any
    ) -> Reading:
        """A reading of all tasks."""

        def make(_task: str, side: Side, seed: int, num_items: int) -> ColumnReading:
            reading: ColumnReading = self.column(
                side, seed=seed, num_items=num_items, **dict(options)
            )
            return reading

        return ByTask(
            objectives,
            items,
            make,
            seed,
            needs_references=self.needs_references,
            needs_history=self.needs_history,
        )


class ShrinkageOptions(EstimatorOptions):
    """What is drawn together, and how much of the past is used.

    of: any other reading; it says what a candidate's own answers are worth.
    memory: the newest scores that count; the cost rises with the cube of it.
    """

    of: Mapping[str, Any] = Field(default_factory=lambda: {"kind": "subset"})
    memory: int = Field(default=512, ge=8)

    @field_validator("of")
    @classmethod
    def _is_reading(cls, of: Mapping[str, Any]) -> Mapping[str, Any]:
        if of.get("kind") == "shrinkage":
            what = "scores are drawn together once: name another kind"
            refuse(cls, [Misfit(("kind",), what)])
        return check_reading(of)


def _shrinkage(
    objectives: Sequence[Objective], items: Items, seed: int, options: ShrinkageOptions
) -> Reading:
    from evomerge.fitness.estimators.shrinkage import Shrinkage

    of = make_reading(options.of, objectives, items, seed)
    return Shrinkage(objectives, of, options.memory)


class StratifiedOptions(EstimatorOptions):
    """How finely items are told apart by the references' answers.

    strata: the most strata of a task.
    least: answers that a stratum needs to count by itself.
    """

    strata: int = Field(default=32, ge=2)
    least: int = Field(default=5, ge=2)


class AipwOptions(EstimatorOptions):
    """How far the prediction leans on what the references say of each other.

    penalty: the ridge's, in answers.
    """

    penalty: float = Field(default=10.0, ge=1e-3)


class IrtOptions(EstimatorOptions):
    """Item response theory: which estimate, and where the items' parameters come from.

    pool: a file of other models' answers or of item parameters, one column for each document of
        the task; task -> file where there are several tasks; or `history`, the run's own, which
        is too little at first: until 32 candidates are told, items are read as strata.
    variant: mp_irt and gmp_irt know a merge by its experts, p_irt and gp_irt by its answers alone.
    dimensions: of ability.
    anchors: whether anchor points are asked, instead of random items.
    residuals: whether a merge also has what ability does not tell: its experts' surprises, and a
        shift of all items; for mp_irt and gmp_irt.
    """

    pool: str | dict[str, str] = HISTORY
    variant: Literal["p_irt", "gp_irt", "mp_irt", "gmp_irt"] = "mp_irt"
    dimensions: int = Field(default=2, ge=1, le=15)
    anchors: bool = False
    residuals: bool = False


def _irt(objectives: Sequence[Objective], items: Items, seed: int, options: IrtOptions) -> Reading:
    from evomerge.fitness.estimators.irt_reading import irt_columns

    make = irt_columns(options, items)
    return ByTask(
        objectives,
        items,
        make,
        seed,
        needs_references=True,
        needs_history=options.pool == HISTORY,
    )


READINGS: dict[str, ReadingKind] = {
    "subset": ReadingKind(
        "random items: the plain mean of the answers",
        EstimatorOptions,
        PerColumn(RandomItems, needs_references=False),
    ),
    "stratified": ReadingKind(
        "items in proportion to the references' patterns of answers",
        StratifiedOptions,
        PerColumn(Stratified),
    ),
    "anchors": ReadingKind(
        "items that stand for clusters of items (anchor points)",
        EstimatorOptions,
        PerColumn(Anchors),
    ),
    "irt": ReadingKind(
        "item response theory on a pool of other models' answers (tinyBenchmarks, MERGE^3)",
        IrtOptions,
        _irt,
    ),
    "aipw": ReadingKind(
        "a prediction from the references' answers, corrected by the candidate's own",
        AipwOptions,
        PerColumn(Aipw),
    ),
    "shrinkage": ReadingKind(
        "another estimator, with scores drawn towards those of like genomes",
        ShrinkageOptions,
        _shrinkage,
    ),
}


def make_reading(
    config: Mapping[str, Any], objectives: Sequence[Objective], items: Items, seed: int
) -> Reading:
    """The reading that a mapping with a `kind` describes.

    Raises:
        ConfigurationError: its kind or its options are unknown.
    """
    options = dict(config)
    kind = str(options.pop("kind", "subset"))
    if kind not in READINGS:
        raise ConfigurationError(f"unknown estimator {kind!r} ({nearest(kind, READINGS)})")
    parsed = parse(READINGS[kind].options, Document(options))
    return READINGS[kind].make(objectives, items, seed, parsed)


def check_reading(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The same mapping, if it describes a reading.

    Raises:
        ValidationError: it does not.
    """
    kind = str(config.get("kind"))
    if kind not in READINGS:
        what = f"unknown kind {kind!r}"
        refuse(EstimatorOptions, [Misfit(("kind",), what, nearest(kind, READINGS))])
    rest = {key: value for key, value in config.items() if key != "kind"}
    outer = {"items", "rotate", "incumbents"} & rest.keys()
    what = "stands beside the outer kind, not in here"
    misfits = [Misfit((key,), what) for key in sorted(outer)]
    try:
        parse(READINGS[kind].options, Document({k: v for k, v in rest.items() if k not in outer}))
    except ConfigurationError as error:
        misfits += [Misfit(tuple(p.where.split(".")), p.what, p.hint) for p in error.problems]
    refuse(EstimatorOptions, misfits)
    return config
