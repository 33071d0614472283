"""The items of a task of lm-eval, and why there are none: a broken file, a field, a far place."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2.exceptions import UndefinedError

from evomerge.errors import ConfigurationError, Problem, nearest
from evomerge.fitness.lm_eval_guard import TemplateGuard
from evomerge.fitness.texts import records_of

OFFLINE = "evomerge is offline: data must be local or already cached"
_OF_THE_NET = ("aiohttp", "fsspec", "httpx", "huggingface_hub", "requests", "urllib3")
_PACKED = frozenset({".7z", ".bz2", ".gz", ".lz4", ".tar", ".tgz", ".xz", ".zip", ".zst"})


def read_documents(task: Any, limit: int | None) -> list[Any]:
    """The documents that an lm-eval task asks about, up to `limit`.

    Raises:
        ConfigurationError: a text in a data file is none.
    """
    try:
        return list(itertools.islice(task.eval_docs, limit))
    except UnicodeDecodeError as error:  # Arrow reads any bytes, and finds out when it gives them
        config = task.config.to_dict()
        found = _file_problems(config) or [Problem("", f"not valid UTF-8: {error}", _names(config))]
        raise ConfigurationError(found) from error


def why_not_built(
    error: Exception, file: Path, config: Mapping[str, Any], guard: TemplateGuard
) -> list[Problem]:
    """What a user can mend where lm-eval could not build a task.

    error: whatever came of it: the libraries below raise what they like. file, config: the task's.
    guard: that was entered meanwhile.
    """
    from datasets.exceptions import DatasetsError

    if isinstance(error, UndefinedError):
        return [_field_problem(error, file, guard)]
    # StopIteration and ValueError are what an empty file gives.
    may_be_of_files = isinstance(error, DatasetsError | StopIteration | ValueError)
    if may_be_of_files and (found := _file_problems(config)):
        return found
    hint = OFFLINE if _is_of_the_net(error, config) else _names(config) if may_be_of_files else ""
    return [Problem(str(file), f"lm-eval cannot build the task: {_told(error)}", hint)]


def _field_problem(error: UndefinedError, file: Path, guard: TemplateGuard) -> Problem:
    """A template that names a field which the data do not have, or what is not in a field."""
    place, columns = guard.undefined or ("", ())
    where = f"{file} {place}".strip()
    if found := re.fullmatch(r"'(\w+)' is undefined", str(error)):
        return Problem(where, f"the data have no field {found[1]!r}", nearest(found[1], columns))
    hint = f"fields: {', '.join(columns)}" if columns else ""
    return Problem(where, f"the template cannot be rendered: {error}", hint)


def _told(error: BaseException) -> str:
    """An error in one line; `datasets` hides what happened behind one that says nothing."""
    if type(error).__name__ == "DatasetGenerationError" and error.__cause__ is not None:
        error = error.__cause__
    words = " ".join(str(error).split())
    return f"{type(error).__name__}: {words}" if words else type(error).__name__


# --- the way to the hub ---------------------------------------------------------------------------


def _is_of_the_net(error: BaseException | None, config: Mapping[str, Any]) -> bool:
    """Whether data were looked for that are neither here nor in a cache."""
    data = str(config.get("dataset_path") or "")
    files = _data_files(config)
    is_here = Path(data).is_absolute() or (files and not any("://" in name for name in files))
    while error is not None:
        by = type(error).__module__.partition(".")[0]
        is_lost = isinstance(error, FileNotFoundError) and not is_here
        if is_lost or isinstance(error, ConnectionError) or by in _OF_THE_NET:
            return True
        if isinstance(error, ValueError) and str(error).startswith("Couldn't find cache for"):
            return True  # another part of the dataset is in the cache
        error = error.__cause__ or error.__context__
    return False


# --- local files ----------------------------------------------------------------------------------


def _data_files(config: Mapping[str, Any]) -> list[str]:
    """The data files that a task names, for whatever split; patterns as they are."""
    kwargs = config.get("dataset_kwargs")
    given = kwargs.get("data_files") if isinstance(kwargs, Mapping) else None
    parts = list(given.values()) if isinstance(given, Mapping) else [given]
    lists = [part if isinstance(part, list | tuple) else [part] for part in parts]
    return [name for name in itertools.chain(*lists) if isinstance(name, str)]


def _local_files(config: Mapping[str, Any]) -> list[Path]:
    paths = [Path(name) for name in _data_files(config) if "://" not in name]
    found = [near for path in paths for near in sorted(path.parent.glob(path.name)) or [path]]
    return [path for path in dict.fromkeys(found) if path.is_file()]


def _names(config: Mapping[str, Any]) -> str:
    files = _local_files(config)
    return f"data: {', '.join(map(str, files))}" if files else ""


def _file_problems(config: Mapping[str, Any]) -> list[Problem]:
    """The first thing that is wrong with each local data file."""
    found: list[Problem] = []
    kwargs = config.get("dataset_kwargs") or {}
    for file in _local_files(config):
        is_text = file.suffix not in _PACKED and "encoding" not in kwargs
        found += itertools.islice(_problems_of(file, config.get("dataset_path"), is_text), 1)
    return found


def _problems_of(file: Path, kind: Any, is_text: bool) -> Iterator[Problem]:
    """What is wrong with one file. kind: its format. is_text: whether it can be read as UTF-8."""
    empty = Problem(str(file), "no items")
    content = file.read_bytes()
    if not content.strip():
        yield empty
    if not is_text or kind not in ("csv", "json"):
        return
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        yield Problem(f"{file}:{line}", f"not valid UTF-8: {error.reason}")
        return
    if kind == "csv" and sum(1 for line in text.splitlines() if line.strip()) < 2:
        yield empty  # the names of the columns alone
    elif kind == "json":
        try:
            if not _records(file, text):
                yield empty
        except ConfigurationError as error:
            yield from error.problems


def _records(file: Path, text: str) -> Sequence[Any] | Mapping[str, Any]:
    """What a JSON document holds, or the records on the lines of a file.

    Raises:
        ConfigurationError: naming the first line that is wrong.
    """
    try:
        whole = json.loads(text)
    except (ValueError, RecursionError) as error:
        if isinstance(error, json.JSONDecodeError) and text.lstrip().startswith("["):
            what = f"not valid JSON: {error.msg}, column {error.colno}"
            raise ConfigurationError(Problem(f"{file}:{error.lineno}", what)) from None
    else:
        if isinstance(whole, list | dict):
            return whole
    return records_of(file, text)
