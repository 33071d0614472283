"""What an experiment file may say of calibration texts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from evomerge.documents import Strict


class TextsConfig(Strict):
    """Where texts are from: a file (.txt, a text a line; .jsonl or .csv), or a task's items.

    field: of a record, which holds its text.
    """

    texts: str | None = None
    task: str | None = None
    field: str = "text"

    @property
    def is_given(self) -> bool:
        """Whether it says anything."""
        return self.texts is not None or self.task is not None

    @model_validator(mode="after")
    def _one_of_them(self) -> TextsConfig:
        if self.texts is not None and self.task is not None:
            raise ValueError("either `texts`, a file, or `task`, whose items to read")
        return self


class CalibrationConfig(TextsConfig):
    """The `calibration:` of an experiment.

    of: model -> texts of its own, instead of everybody's.
    samples: texts of each file or task, drawn by the run's seed where there are more.
    length: tokens of a text that are read. threads: that read; the last bits hang on it.
    """

    of: dict[str, TextsConfig] = Field(default_factory=dict)
    samples: int = Field(default=64, ge=1)
    length: int = Field(default=128, ge=2)
    threads: int = Field(default=1, ge=1)

    @model_validator(mode="after")
    def _some(self) -> CalibrationConfig:
        if not self.is_given and not self.of:
            raise ValueError("needs `texts`, `task`, or `of` with a model's own")
        for model, own in self.of.items():
            if not own.is_given:
                raise ValueError(f"of.{model}: needs `texts` or `task`")
        return self

    def without_paths(self) -> dict[str, Any]:
        """What decides a trajectory beside the texts themselves, which count by their content."""
        data = self.model_dump(mode="json", exclude_defaults=True)
        for part in (data, *data.get("of", {}).values()):
            if "texts" in part:
                part["texts"] = Path(part["texts"]).name
        return data
