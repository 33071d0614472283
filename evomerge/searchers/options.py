"""What can be set of a searcher: declared once, for checking, `--help` and the docs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from evomerge.documents import Document, problems_of
from evomerge.errors import ConfigurationError, Problem


class StrictOptions(BaseModel):
    """A searcher's options: each field has a type, a default, bounds and a description.

    Strict, because `population: "20"` or `restarts: true` is a mistake rather than a number.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


OptionsT = TypeVar("OptionsT", bound=StrictOptions)


def read_options(model: type[OptionsT], options: Mapping[str, Any], kind: str) -> OptionsT:
    """Check a searcher's options.

    Raises:
        ConfigurationError: with every problem, and the nearest valid name of an unknown option.
    """
    try:
        return model.model_validate(dict(options))
    except ValidationError as error:
        raise ConfigurationError(
            Problem(f"searcher.{problem.where} ({kind})", problem.what, problem.hint)
            for problem in problems_of(error, model, Document(dict(options)))
        ) from None
