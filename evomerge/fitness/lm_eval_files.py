"""Opens tasks of lm-evaluation-harness: from YAML files with local data, or its own registry.

Files are read relative to the YAML that names them, and a YAML that names code is refused unless
code is allowed.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from evomerge.errors import ConfigurationError, Problem, nearest
from evomerge.fitness.lm_eval_data import why_not_built
from evomerge.fitness.lm_eval_guard import (
    TemplateGuard,
    code_by_name,
    silent_and_offline,
    without_dataset_scripts,
)
from evomerge.fitness.options import ALLOW_CODE

FEWSHOT_SEED = 1234  # what lm-eval's own evaluation draws few-shot examples with

OUTPUT_TYPES = ("multiple_choice", "loglikelihood", "loglikelihood_rolling", "generate_until")
FILE_FORMATS = frozenset({"arrow", "csv", "json", "parquet", "text"})


def open_task(
    task: str,
    path: Path | None,
    *,
    num_fewshot: int | None = None,
    overrides: Mapping[str, Any] | None = None,
    allow_code: bool = False,
) -> tuple[Any, TemplateGuard]:
    """An `lm_eval.api.task.Task`, and the guard to be entered whenever it is made to render.

    Args:
        task: lm-eval's name of the task.
        path: a task file or a folder of them; None for lm-eval's registry, which takes a
            second or two to search.
        num_fewshot: examples in the prompt; None for what the task says.
        overrides: keys of the task's file with other values.
        allow_code: whether `!function`, tasks that run generated code, templates outside a
            sandbox and metrics from outside lm-eval are let through.

    Raises:
        ConfigurationError: no such task or data file, code that is not allowed, or a task that
            lm-eval cannot build.
    """
    with silent_and_offline():
        file = _registered_file(task) if path is None else _find_file(task, path)
        if not allow_code and (problems := code_in(file)):
            raise ConfigurationError(problems)
        config = _read(file, allow_code) | dict(overrides or {})
        if not allow_code:
            if problems := code_by_name(config, file):
                raise ConfigurationError(problems)
            config = without_dataset_scripts(config)
        guard = TemplateGuard(file, config, allow_code)
        with guard, tempfile.TemporaryDirectory(prefix="evomerge-") as scratch:
            _read_into_memory(config, scratch)
            opened = _build(config, file, guard)
        _check(opened, file, allow_code)
        _set_fewshot(opened, num_fewshot, file)
    return opened, guard


def scores_by_own_code(task: Any) -> bool:
    """Whether the task brings code that turns answers into scores."""
    from lm_eval.api.task import ConfigurableTask

    inherited = type(task).process_results is ConfigurableTask.process_results
    return not inherited or callable(task.get_config("process_results"))


# --- finding --------------------------------------------------------------------------------------


def line_of_task(task: str) -> re.Pattern[str]:
    """What a task's file has a line of."""
    return re.compile(rf"^task:\s*[\"']?{re.escape(task)}[\"']?\s*(#.*)?$", re.MULTILINE)


@lru_cache(maxsize=64)
def registered_file(task: str) -> Path | None:
    """The file of a task in lm-eval's registry that has a line with its name."""
    import lm_eval.tasks

    # Parsing all the registry's files takes tens of seconds, looking for a line in them one or two.
    line = line_of_task(task)
    for file in sorted(Path(lm_eval.tasks.__file__).parent.rglob("*.yaml")):
        if line.search(file.read_text(encoding="utf-8", errors="replace")):
            return file
    return None


def is_registered(path: Path | None) -> bool:
    """Whether a task or a group of that path is of lm-eval's registry."""
    import lm_eval.tasks

    return path is None or path.resolve().is_relative_to(
        Path(lm_eval.tasks.__file__).resolve().parent
    )


@lru_cache(maxsize=1)
def registry() -> dict[str, Any]:
    """Everything that lm-eval's registry names, with its kind; takes some 15 seconds, once."""
    import lm_eval.tasks
    from lm_eval.tasks._index import TaskIndex

    index: dict[str, Any] = TaskIndex.build([Path(lm_eval.tasks.__file__).parent])
    return index


def _registered_file(task: str) -> Path:
    if (file := registered_file(task)) is not None:
        return file
    entry = registry().get(task)
    if entry is None:
        raise ConfigurationError(
            Problem(task, "lm-eval has no such task", nearest(task, registry()))
        )
    if entry.kind.name in ("GROUP", "TAG"):
        what, hint = "is a group of tasks", "name one of its tasks, or the group in a fitness file"
        raise ConfigurationError(Problem(task, what, hint))
    return Path(entry.yaml_path)


def _find_file(task: str, path: Path) -> Path:
    if not path.exists():
        raise ConfigurationError(Problem(str(path), "no such file or folder"))
    files = [path] if path.is_file() else sorted(path.rglob("*.yaml"))
    names: list[str] = []
    unreadable: list[Problem] = []
    for file in files:
        try:
            found = _load(file, run_code=False).get("task")
        except ConfigurationError as error:
            unreadable.extend(error.problems)
            continue
        if found == task:
            return file.resolve()
        if isinstance(found, str):
            names.append(found)
    problem = Problem(str(path), f"no task named {task!r}", nearest(task, names))
    raise ConfigurationError([problem, *unreadable])


# --- reading --------------------------------------------------------------------------------------


def _load(file: Path, run_code: bool) -> dict[str, Any]:
    """One YAML file by itself; `!function` is imported only if code may run."""
    from lm_eval.tasks._yaml_loader import load_yaml

    try:
        return dict(load_yaml(file, resolve_func=run_code, recursive=False))
    except FileNotFoundError:
        raise ConfigurationError(Problem(str(file), "no such file")) from None
    except yaml.YAMLError as error:
        raise ConfigurationError(Problem(str(file), f"not valid YAML: {error}")) from None
    except (ValueError, ImportError, AttributeError) as error:
        raise ConfigurationError(Problem(str(file), str(error))) from None


def _includes(config: dict[str, Any], file: Path) -> list[Path]:
    included = config.get("include", [])
    return [file.parent / name for name in (included if isinstance(included, list) else [included])]


def _read(file: Path, allow_code: bool, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """A task's configuration with its includes, and data files as absolute paths."""
    if file in above:
        raise ConfigurationError(Problem(str(file), "includes itself"))
    config = _load(file, allow_code)
    merged: dict[str, Any] = {}
    for included in _includes(config, file):
        merged |= _read(included.resolve(), allow_code, (*above, file))
    config.pop("include", None)
    _anchor(config, file)
    return merged | config


def _anchor(config: dict[str, Any], file: Path) -> None:
    """Make what is named relative to the file absolute, and see that it is there."""
    problems: list[Problem] = []

    def absolute(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: absolute(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [absolute(inner) for inner in value]
        if not isinstance(value, str) or "://" in value:
            return value
        found = file.parent / value
        if not found.exists() and not any(found.parent.glob(found.name)):
            siblings = (sibling.name for sibling in found.parent.glob("*"))
            problems.append(
                Problem(f"{file} dataset_kwargs", f"no data file {found}", nearest(value, siblings))
            )
        return str(found)

    kwargs = config.get("dataset_kwargs")
    if isinstance(kwargs, dict):
        anchored = {
            key: absolute(kwargs[key]) for key in ("data_files", "data_dir") if key in kwargs
        }
        config["dataset_kwargs"] = kwargs | anchored
    data = config.get("dataset_path")
    if isinstance(data, str) and data not in FILE_FORMATS and (file.parent / data).exists():
        config["dataset_path"] = str((file.parent / data).resolve())
    if problems:
        raise ConfigurationError(problems)


def code_in(file: Path, above: tuple[Path, ...] = ()) -> list[Problem]:
    """Every `!function` of a file and of what it includes."""
    problems = []

    def visit(node: yaml.Node | None, key: str) -> None:
        if isinstance(node, yaml.MappingNode):
            for name, value in node.value:
                visit(value, f"{key}.{name.value}".strip("."))
        elif isinstance(node, yaml.SequenceNode):
            for value in node.value:
                visit(value, key)
        elif isinstance(node, yaml.ScalarNode) and node.tag == "!function":
            module, _, function = node.value.rpartition(".")
            source = file.parent / f"{module.replace('.', '/')}.py"
            place = source if source.exists() else f"module {module}"
            problems.append(
                Problem(
                    f"{file}:{node.start_mark.line + 1} {key}",
                    f"would run {function} of {place}",
                    ALLOW_CODE,
                )
            )

    visit(yaml.compose(file.read_text(encoding="utf-8"), Loader=yaml.SafeLoader), "")
    for included in _includes(_load(file, run_code=False), file):
        if included.resolve() not in above and included.exists():
            problems += code_in(included.resolve(), (*above, file))
    return problems


# --- building -------------------------------------------------------------------------------------


def _read_into_memory(config: dict[str, Any], scratch: str) -> None:
    """Read local files afresh, so that no stale copy in the user's data cache is ever used."""
    kwargs = config.get("dataset_kwargs")
    if config.get("dataset_path") in FILE_FORMATS and isinstance(kwargs, dict):
        config["dataset_kwargs"] = {"cache_dir": scratch, "keep_in_memory": True} | kwargs


def _build(config: dict[str, Any], file: Path, guard: TemplateGuard) -> Any:
    from lm_eval.tasks import TaskManager

    try:
        tasks = TaskManager(include_defaults=False).load([config])["tasks"]
    except ConfigurationError:
        raise  # the guard's
    except Exception as error:
        raise ConfigurationError(why_not_built(error, file, config, guard)) from error
    (opened,) = tasks.values()
    return opened


def _check(task: Any, file: Path, allow_code: bool) -> None:
    problems = []
    if getattr(task, "UNSAFE_CODE", False) and not allow_code:
        problems.append(
            Problem(
                f"{file} unsafe_code",
                "would run code that the model writes",
                ALLOW_CODE,
            )
        )
    if getattr(task, "MULTIMODAL", False):
        problems.append(Problem(str(file), "not supported yet: a task with images or sound"))
    if task.OUTPUT_TYPE not in OUTPUT_TYPES:
        what, hint = f"not supported: {task.OUTPUT_TYPE}", nearest(task.OUTPUT_TYPE, OUTPUT_TYPES)
        problems.append(Problem(f"{file} output_type", what, hint))
    repeats = task.get_config("repeats")
    is_count = isinstance(repeats, int) and not isinstance(repeats, bool) and repeats >= 1
    if repeats is not None and not is_count:
        what = f"expected a whole number from 1, got {repeats!r}"
        problems.append(Problem(f"{file} repeats", what))
    if problems:
        raise ConfigurationError(problems)


def _set_fewshot(task: Any, num_fewshot: int | None, file: Path) -> None:
    fixed = task.get_config("num_fewshot")
    if num_fewshot and fixed == 0:
        raise ConfigurationError(
            Problem(
                f"{file} num_fewshot",
                f"the task is fixed at 0 examples, got num_fewshot: {num_fewshot}",
                "lm-eval ignores any other number for such a task",
            )
        )
    if fixed is None or (num_fewshot is not None and fixed != 0):
        task.set_config(key="num_fewshot", value=num_fewshot or 0)
    task.set_fewshot_seed(seed=FEWSHOT_SEED)
