"""What a fitness file may say of each kind of task."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from evomerge.documents import Misfit, refuse

ALLOW_CODE = "code runs only where it is allowed: --allow-code"


class TaskOptions(BaseModel):
    """Strict about keys and types.

    Whether a task's own code may run is not among it: only the user can say so, for a whole run.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    @property
    def positions(self) -> int:
        """How many a model needs at least."""
        return 1


class LmEvalOptions(TaskOptions):
    """A task of lm-eval; see `LmEvalTask`."""

    task: str
    path: str | None = None
    metric: str | None = None
    filter: str | None = None
    num_fewshot: int | None = Field(default=None, ge=0)
    batch_size: int = Field(default=128, ge=1)
    limit: int | None = Field(default=None, ge=1)
    overrides: dict[str, Any] | None = None
    chat_template: bool = False
    fewshot_as_multiturn: bool = False
    max_new_tokens: int | None = Field(default=None, ge=1)
    shared_prefix: bool | None = None
    higher_is_better: bool | None = None
    worst: float | None = Field(default=None, allow_inf_nan=False)

    @model_validator(mode="after")
    def _turns_need_a_chat(self) -> LmEvalOptions:
        if self.fewshot_as_multiturn and not self.chat_template:
            refuse(self, [Misfit(("fewshot_as_multiturn",), "goes with `chat_template: true`")])
        return self


class PerplexityOptions(TaskOptions):
    """Texts; see `PerplexityTask`."""

    path: str
    field: str = "text"
    max_length: int | None = Field(default=None, ge=2)
    batch_size: int = Field(default=16, ge=1)
    limit: int | None = Field(default=None, ge=1)


class PromptOptions(TaskOptions):
    """Prompts of a file, or of another task; see `PromptTask`."""

    path: str | None = None
    of: str | None = None
    field: str = "prompt"
    until: list[str] | None = None
    batch_size: int = Field(default=64, ge=1)
    limit: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _prompts_from_somewhere(self) -> PromptOptions:
        if (self.path is None) == (self.of is None):
            what = "needs either `path`, a file of prompts, or `of`, a task whose prompts to use"
            refuse(self, [Misfit(("path",), what)])
        return self


class EntropyOptions(PromptOptions):
    """See `EntropyTask`."""

    tokens: int = Field(default=1, ge=1)

    @property
    def positions(self) -> int:
        """An answer of one token is read from the prompt's last position."""
        return self.tokens + 1 if self.tokens > 1 else 1


class TeacherKLOptions(PromptOptions):
    """See `TeacherKLTask`."""

    teacher: str
    tokens: int = Field(default=8, ge=1)
    top: int = Field(default=256, ge=1)

    @property
    def positions(self) -> int:
        """An answer of one token is read from the prompt's last position."""
        return self.tokens + 1 if self.tokens > 1 else 1


class ClassificationOptions(TaskOptions):
    """Labelled texts or images; see `ClassificationTask`."""

    path: str
    text: str | list[str] = "text"
    label: str = "label"
    images: str = "images"
    labels: str = "labels"
    batch_size: int = Field(default=32, ge=1)
    max_length: int | None = Field(default=None, ge=2)
    limit: int | None = Field(default=None, ge=1)


class LatencyOptions(TaskOptions):
    """See `LatencyTask`."""

    prompt_tokens: int = Field(default=64, ge=1)
    new_tokens: int = Field(default=16, ge=1)
    repeats: int = Field(default=5, ge=1)

    @property
    def positions(self) -> int:
        """Of the prompt and what is decoded after it."""
        return self.prompt_tokens + self.new_tokens


class PythonOptions(BaseModel):
    """A user's code, which gets what else stands there; see `PythonFileTask`."""

    model_config = ConfigDict(frozen=True, extra="allow", strict=True)

    num_items: int | None = Field(default=None, ge=1)
    worst: float | None = Field(default=None, allow_inf_nan=False)

    @model_validator(mode="after")
    def _names_are_free(self) -> PythonOptions:
        taken = {"name", "code", "self"} & (self.model_extra or {}).keys()
        what = "the task has this key itself: rename the option"
        refuse(self, [Misfit((key,), what) for key in sorted(taken)])
        return self


def needs_code(kind: Any) -> bool:
    """Whether a kind names a user's code."""
    return isinstance(kind, str) and kind.startswith("python:")
