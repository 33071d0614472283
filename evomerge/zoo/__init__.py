"""Small families of models that this project trains itself.

`zoo:tiny/sort` names a model of a family, `zoo:tiny@3/sort` the same trained from seed 3.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from evomerge.errors import ConfigurationError, Problem, nearest
from evomerge.zoo.tiny_items import MODELS as TINY_MODELS

PREFIX = "zoo:"
Progress = Callable[[str, int, int], None]  # (model, steps done, steps in all)


@dataclass(frozen=True)
class Zoo:
    """A family: what its models are called, and how it is trained."""

    models: tuple[str, ...]
    train: Callable[[Path | None, int, Progress | None], Path]

    def __call__(
        self, folder: Path | None = None, *, seed: int = 0, progress: Progress | None = None
    ) -> Path:
        """The family's folder, trained now unless it is there already."""
        return self.train(folder, seed, progress)


def _tiny(folder: Path | None, seed: int, progress: Progress | None) -> Path:
    from evomerge.zoo.tiny import tiny

    return tiny(folder, seed=seed, progress=progress)


ZOOS: Mapping[str, Zoo] = {"tiny": Zoo(TINY_MODELS, _tiny)}


def zoo_path(reference: str, progress: Progress | None = None) -> Path:
    """The folder of `zoo:FAMILY/MODEL` or `zoo:FAMILY@SEED/MODEL`, trained on first use.

    Raises:
        ConfigurationError: there is no such family or model.
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
    family, seed, model = match.groups()
    if family not in ZOOS:
        raise ConfigurationError(
            Problem(reference, f"no zoo is called {family!r}", nearest(family, ZOOS))
        )
    zoo = ZOOS[family]
    if model not in zoo.models:
        what = f"{family} has no model {model!r}" if model else "which model of the zoo?"
        raise ConfigurationError(Problem(reference, what, nearest(model or "", zoo.models)))
    return zoo(seed=int(seed or 0), progress=progress) / model
