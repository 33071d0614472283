"""A calibration set: the texts that models read, so that merges can look at what happens inside.

A run resolves its set once, to plain texts, and keeps them in `calibration.json`; recipes name the
set by its digest.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from evomerge.documents import Document, parse
from evomerge.errors import ConfigurationError, Problem, nearest
from evomerge.recipe import Frozen, canonical_json

CALIBRATION = "calibration.json"  # in a run folder, and beside an exported model's recipe
Text = Annotated[str, Field(min_length=1)]


class Calibration(Frozen):
    """Texts to read.

    texts: for every model that `of` does not name.
    of: model -> texts of its own, as the papers have it: each expert reads what it is good at.
    length: tokens of a text that are read, from its beginning.
    threads: that compute; the last bits hang on it, so it is said here and not by the machine.
    """

    evomerge_calibration: Literal[1] = 1
    texts: tuple[Text, ...] = ()
    of: dict[str, tuple[Text, ...]] = Field(default_factory=dict)
    length: int = Field(default=128, ge=2)
    threads: int = Field(default=1, ge=1)

    @model_validator(mode="after")
    def _some(self) -> Calibration:
        if not self.texts and not self.of:
            raise ValueError("no texts: give `texts`, or `of` with a model's")
        for model, own in self.of.items():
            if not own:
                raise ValueError(f"of.{model}: no texts")
        return self

    def read_by(self, model: str) -> tuple[str, ...]:
        """A model's texts: its own, else everybody's, else those of all that have their own."""
        everybody = self.texts or tuple(text for name in sorted(self.of) for text in self.of[name])
        return self.of.get(model, everybody)

    @property
    def sha256(self) -> str:
        """What recipes name the set by."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def to_json(self) -> str:
        """Canonical JSON, as `read_calibration` reads it."""
        data = self.model_dump(mode="json", exclude_defaults=True)
        return canonical_json({**data, "evomerge_calibration": 1})


def read_calibration(path: str | Path) -> Calibration:
    """A calibration set from the `calibration.json` of a run, or from a file with a text a line.

    Raises:
        ConfigurationError: it cannot be read, or has no texts.
    """
    file = Path(path).expanduser()
    try:
        text = file.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        siblings = [p.name for p in file.parent.glob("*")] if file.parent.is_dir() else []
        hint = nearest(file.name, siblings)
        raise ConfigurationError(Problem("calibration", f"no such file: {file}", hint)) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(Problem("calibration", f"{file}: {error}")) from None
    if file.suffix != ".json":
        lines = [line for line in text.split("\n") if line.strip()]
        return parse(Calibration, Document({"texts": lines}, file))
    try:
        data = json.loads(text)
    except ValueError as error:
        raise ConfigurationError(Problem(str(file), f"no JSON: {error}")) from None
    return parse(Calibration, Document(data, file))


def check_models(calibration: Calibration, models: Mapping[str, Any]) -> None:
    """That the models with texts of their own are there.

    Raises:
        ConfigurationError: naming those that are not.
    """
    if problems := [
        Problem(f"calibration of.{name}", "no such model", nearest(name, models))
        for name in calibration.of
        if name not in models
    ]:
        raise ConfigurationError(problems)
