"""Prompts as conversations, by the rules of lm-evaluation-harness's `HFLM.apply_chat_template`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from evomerge.errors import ConfigurationError, Problem

Message = Mapping[str, str]  # role and content


@dataclass(frozen=True)
class Chat:
    """What a tokenizer's chat template makes of a conversation; lm-eval calls it."""

    tokenizer: Any

    @classmethod
    def of(cls, tokenizer: Any, task: str) -> Chat:
        """The template of a tokenizer.

        Raises:
            ConfigurationError: it has none.
        """
        if not getattr(tokenizer, "chat_template", None):
            what = "the tokenizer has no chat template"
            hint = "leave `chat_template: true` out, or name models that have one"
            raise ConfigurationError(Problem(f"task {task}", what, hint))
        return cls(tokenizer)

    def __call__(self, messages: Sequence[Message], add_generation_prompt: bool = True) -> str:
        """The text of a conversation; without a prompt to answer, its last message goes on."""
        import jinja2

        try:
            return self._rendered(messages, add_generation_prompt)
        except jinja2.exceptions.TemplateError:  # templates may refuse the role
            others = [message for message in messages if message["role"] != "system"]
            return self._rendered(others, add_generation_prompt)

    def _rendered(self, messages: Sequence[Message], prompt: bool) -> str:
        text: str = self.tokenizer.apply_chat_template(
            messages,
            tokenize=False,
            add_generation_prompt=prompt,
            continue_final_message=not prompt,
        )
        return text
