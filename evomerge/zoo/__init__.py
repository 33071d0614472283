"""Families of models that this project trains itself.

`zoo:tiny/sort` names a model of a family, `zoo:tiny@3/sort` the same trained from seed 3. The tiny
families and `digits` are trained on first use; `smollm2`, a real model, and `smollm2_german`, only
by `evomerge zoo`. A family that brings tasks has them beside its models:
`zoo:smollm2/tasks/sums.yaml`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evomerge.errors import ConfigurationError, Problem, nearest
from evomerge.protocols import Progress
from evomerge.zoo.smollm2.stages import EXPERTS as SMOLLM2_EXPERTS
from evomerge.zoo.smollm2.stages import GERMAN, GERMAN_TASKS
from evomerge.zoo.smollm2.stages import MODELS as SMOLLM2_MODELS
from evomerge.zoo.tiny_items import CHECKPOINTS
from evomerge.zoo.tiny_items import MODELS as TINY_MODELS

PREFIX = "zoo:"


@dataclass(frozen=True)
class Zoo:
    """A family: what its models are called, and how it is trained.

    tasks: task files in its folder.
    is_made: whether the family of a seed is there; given for one that no reference starts.
    cost: what making it takes, for people.
    table: what the experts have learnt, from the family's folder.
    """

    models: tuple[str, ...]
    train: Callable[[Path | None, int, Progress | None], Path]
    tasks: tuple[str, ...] = ()
    is_made: Callable[[int], bool] | None = None
    cost: str = ""
    table: Callable[[Path], dict[str, Any]] | None = None

    def __call__(
        self, folder: Path | None = None, *, seed: int = 0, progress: Progress | None = None
    ) -> Path:
        """The family's folder, trained now unless it is there already."""
        return self.train(folder, seed, progress)


def _tiny(folder: Path | None, seed: int, progress: Progress | None) -> Path:
    from evomerge.zoo.tiny import tiny

    return tiny(folder, seed=seed, progress=progress)


def _tiny_run(folder: Path | None, seed: int, progress: Progress | None) -> Path:
    from evomerge.zoo.tiny_run import tiny_run

    return tiny_run(folder, seed=seed, progress=progress)


def _tiny_lora(folder: Path | None, seed: int, progress: Progress | None) -> Path:
    from evomerge.zoo.tiny_lora import tiny_lora

    return tiny_lora(folder, seed=seed, progress=progress)


def _digits(folder: Path | None, seed: int, progress: Progress | None) -> Path:
    from evomerge.zoo.digits import digits

    return digits(folder, seed=seed, progress=progress)


def _smollm2(folder: Path | None, seed: int, progress: Progress | None) -> Path:
    from evomerge.zoo.smollm2 import smollm2

    return smollm2(folder, seed=seed, progress=progress)


def _smollm2_is_made(seed: int) -> bool:
    from evomerge.zoo.smollm2 import is_made

    return is_made(seed)


def _smollm2_table(folder: Path) -> dict[str, Any]:
    from evomerge.zoo.smollm2 import read_table

    return read_table(folder)


def _german(folder: Path | None, seed: int, progress: Progress | None) -> Path:
    from evomerge.zoo.smollm2.german import smollm2_german

    return smollm2_german(folder, seed=seed, progress=progress)


def _german_is_made(seed: int) -> bool:
    from evomerge.zoo.smollm2.german import is_made

    return is_made(seed)


ZOOS: Mapping[str, Zoo] = {
    "tiny": Zoo(TINY_MODELS, _tiny),
    "tiny_lora": Zoo(TINY_MODELS, _tiny_lora),
    "tiny_run": Zoo(("base", *CHECKPOINTS), _tiny_run),
    "digits": Zoo(("base", "low", "high"), _digits),
    "smollm2": Zoo(
        SMOLLM2_MODELS,
        _smollm2,
        tasks=tuple(f"tasks/{skill}.yaml" for skill in SMOLLM2_EXPERTS),
        is_made=_smollm2_is_made,
        cost="fetches 450 MB, trains for ten minutes to an hour, keeps 2.9 GB",
        table=_smollm2_table,
    ),
    "smollm2_german": Zoo(
        (GERMAN.skill,),
        _german,
        tasks=tuple(f"tasks/{skill}.yaml" for skill in GERMAN_TASKS),
        is_made=_german_is_made,
        cost="first what smollm2 takes; then it trains for some minutes to an hour, keeps 0.54 GB",
        table=_smollm2_table,
    ),
}


def zoo_path(reference: str, progress: Progress | None = None) -> Path:
    """The folder of `zoo:FAMILY/MODEL` or `zoo:FAMILY@SEED/MODEL`, trained on first use.

    A family that brings tasks also has the path of `zoo:FAMILY/tasks/NAME.yaml`.

    Raises:
        ConfigurationError: there is no such family, model or task; or the family is one that is
            made on request only, and is not there.
    """
    family, seed, model = check_reference(reference)
    zoo = ZOOS[family]
    if zoo.is_made is not None and not zoo.is_made(seed):
        command = f"evomerge zoo {family}" + (f" --seed {seed}" if seed else "")
        raise ConfigurationError(
            Problem(reference, "is not made yet", f"make it with: {command} ({zoo.cost})")
        )
    return zoo(seed=seed, progress=progress) / model


def check_reference(reference: str) -> tuple[str, int, str]:
    """Family, seed and model of a reference; whether they are made is not looked at.

    Raises:
        ConfigurationError: there is no such family, model or task.
    """
    match = re.fullmatch(r"zoo:([^@/]*)(?:@(\d+))?(?:/(.*))?", reference)
    if match is None:
        valid = [f"{PREFIX}{name}/{model}" for name, zoo in ZOOS.items() for model in zoo.models]
        raise ConfigurationError(
            Problem(
                reference,
                "expected zoo:FAMILY/MODEL or zoo:FAMILY@SEED/MODEL",
                nearest(reference, valid),
            )
        )
    family, seed, model = match.group(1), int(match.group(2) or 0), match.group(3)
    if family not in ZOOS:
        raise ConfigurationError(
            Problem(reference, f"no zoo is called {family!r}", nearest(family, ZOOS))
        )
    zoo = ZOOS[family]
    if model not in (*zoo.models, *zoo.tasks):
        what = f"{family} has no model {model!r}" if model else "which model of the zoo?"
        names = zoo.tasks if (model or "").startswith("tasks/") else zoo.models
        raise ConfigurationError(Problem(reference, what, nearest(model or "", names)))
    return family, seed, model
