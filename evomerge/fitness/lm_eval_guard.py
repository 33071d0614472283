"""Keeps lm-evaluation-harness silent, offline, and from running code that was not allowed.

A task file can run code in four ways beside `!function`: through a template, which lm-eval renders
without a sandbox; through the name of a metric, which is looked up as a script where lm-eval does
not know it; through a prompt collection; and through a dataset's script or pickle.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import random
import threading
import warnings
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any

from jinja2 import Environment, Template
from jinja2.exceptions import SecurityError, UndefinedError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from evomerge.errors import ConfigurationError, Problem, nearest
from evomerge.fitness.options import ALLOW_CODE

_PLAIN_MODULES = frozenset({"builtins", "datetime", "decimal", "jinja2"})
_OPTIONS = (
    *("block_start_string", "block_end_string", "variable_start_string", "variable_end_string"),
    *("comment_start_string", "comment_end_string", "line_statement_prefix"),
    *("line_comment_prefix", "trim_blocks", "lstrip_blocks", "newline_sequence"),
    *("keep_trailing_newline", "optimized", "undefined", "finalize", "autoescape", "loader"),
)


@contextlib.contextmanager
def silent_and_offline() -> Iterator[None]:
    """No network, no progress bars, no chatter of the libraries below.

    lm-eval draws a random name for every task that it opens, used or not, from the global generator
    of `random`; that is put back as it was.
    """
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["HF_DATASETS_OFFLINE"] = "1"
    loggers = [logging.getLogger(name) for name in ("lm_eval", "datasets")]
    generator = random.getstate()
    sink = io.StringIO()
    with (
        contextlib.redirect_stdout(sink),
        contextlib.redirect_stderr(sink),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        import datasets.config
        import huggingface_hub.constants

        # Both read the environment when they are first imported, which may be long ago.
        huggingface_hub.constants.HF_HUB_OFFLINE = True
        datasets.config.HF_HUB_OFFLINE = True
        levels = [logger.level for logger in loggers]  # `datasets` sets its own when imported
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
            random.setstate(generator)


# --- templates ------------------------------------------------------------------------------------


class TemplateGuard:
    """While entered, lm-eval renders a task's templates in a sandbox; may be entered repeatedly.

    Other threads that render with lm-eval meanwhile are in the sandbox too, and another guard waits
    for this one: what one puts back is never what the other had put there.

    Args:
        file: the task's file, named in errors.
        config: the task's configuration.
        allow_code: leave lm-eval as it is.

    Attributes:
        undefined: the field of the configuration whose template last found something missing in a
            document, and the document's own fields; None if none has.
    """

    _lock = threading.RLock()

    def __init__(self, file: Path, config: Mapping[str, Any], allow_code: bool) -> None:
        self._file = file
        self._allow_code = allow_code
        self._fields = dict(_texts(config))
        self._templates: dict[str, Template] = {}
        self._originals: list[Any] = []
        self.undefined: tuple[str, tuple[str, ...]] | None = None

    def __enter__(self) -> None:
        if self._allow_code:
            return
        import lm_eval.utils

        self._lock.acquire()
        self._originals.append(lm_eval.utils.apply_template)
        lm_eval.utils.apply_template = self.render

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._allow_code:
            return
        import lm_eval.utils

        lm_eval.utils.apply_template = self._originals.pop()
        self._lock.release()

    def render(self, template: str, doc: Mapping[str, Any]) -> str:
        """What lm-eval's `apply_template` gives.

        Raises:
            ConfigurationError: the template reaches for what a sandbox does not hold.
        """
        try:
            if template not in self._templates:
                self._templates[template] = self._environment.from_string(template)
            return self._templates[template].render(**doc)
        except SecurityError as error:
            place = f"{self._file} {self._fields.get(template, 'template')}"
            what = f"the template reaches out of its sandbox: {error}"
            raise ConfigurationError(Problem(place, what, ALLOW_CODE)) from None
        except UndefinedError:
            self.undefined = self._fields.get(template, "template"), tuple(map(str, doc))
            raise

    @cached_property
    def _environment(self) -> Environment:
        """lm-eval's environment, option by option, in a sandbox."""
        import lm_eval.utils

        theirs = lm_eval.utils.env
        environment = _Sandbox(**{name: getattr(theirs, name) for name in _OPTIONS})
        environment.filters.update(theirs.filters)
        environment.tests.update(theirs.tests)
        return environment


class _Sandbox(ImmutableSandboxedEnvironment):
    """Jinja's sandbox, and no methods of what a dataset may hold (an image can save itself)."""

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        plain = type(obj).__module__.partition(".")[0] in _PLAIN_MODULES
        return plain and super().is_safe_attribute(obj, attr, value)


def _texts(config: Any, place: str = "") -> Iterator[tuple[str, str]]:
    """Every text of a configuration, with its field."""
    if isinstance(config, str):
        yield config, place
    elif isinstance(config, Mapping):
        for name, value in config.items():
            yield from _texts(value, f"{place}.{name}".strip("."))
    elif isinstance(config, list):
        for value in config:
            yield from _texts(value, place)


# --- names ----------------------------------------------------------------------------------------


def code_by_name(config: Mapping[str, Any], file: Path) -> list[Problem]:
    """What a configuration names that lm-eval would look for outside its own registries."""
    import lm_eval.api.metrics
    import lm_eval.filters  # noqa: F401 - they fill the registries
    from lm_eval.api.registry import aggregation_registry, filter_registry, metric_registry
    from lm_eval.prompts import PROMPT_REGISTRY

    problems = []

    def check(field: str, kind: str, name: Any, known: Any) -> None:
        names = list(known)
        if name not in names:
            what = f"{kind} {name!r} is not one of lm-eval's, and could be a script"
            problems.append(
                Problem(f"{file} {field}", what, f"{nearest(str(name), names)}; {ALLOW_CODE}")
            )

    for entry in _entries(config.get("metric_list")):
        check("metric_list", "metric", entry.get("metric"), metric_registry)
        if "aggregation" in entry:
            check("metric_list", "aggregation", entry["aggregation"], aggregation_registry)
        if entry.get("hf_evaluate"):
            what = f"would run the script of the metric {entry.get('metric')!r}"
            problems.append(Problem(f"{file} metric_list.hf_evaluate", what, ALLOW_CODE))
    for pipeline in _entries(config.get("filter_list")):
        for step in _entries(pipeline.get("filter")):
            check("filter_list", "filter", step.get("function"), filter_registry)
    if (prompt := config.get("use_prompt")) is not None:
        known = [f"{group}:{name}" for group, own in PROMPT_REGISTRY.items() for name in own]
        check("use_prompt", "prompt", prompt, known)
    if config.get("dataset_path") == "pandas":
        what = "pandas: would unpickle data, which can run code"
        problems.append(Problem(f"{file} dataset_path", what, ALLOW_CODE))
    return problems


def _entries(value: Any) -> list[Mapping[str, Any]]:
    """The mappings of a list; lm-eval itself complains of what else stands there."""
    return [entry for entry in value if isinstance(entry, Mapping)] if value else []


def without_dataset_scripts(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration, with the scripts of datasets forbidden where they still exist."""
    import datasets

    kwargs = config.get("dataset_kwargs") or {}
    if int(datasets.__version__.partition(".")[0]) >= 4 or not isinstance(kwargs, dict):
        return dict(config)  # since 4.0 no dataset brings a script
    return {**config, "dataset_kwargs": {**kwargs, "trust_remote_code": False}}
