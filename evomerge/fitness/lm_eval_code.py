"""The code that a task of lm-eval brings, by its content, so that a changed one is another task."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any

from evomerge.fitness.function_hash import globals_read


def code_of(task: Any) -> dict[str, str]:
    """Field of the configuration -> sha256 of the file whose code stands there.

    Functions that use nothing of their file but themselves and imported modules are left out: their
    text is in the configuration that lm-eval dumps. Of others the whole file counts, with its
    helpers and tables; what it imports from further files does not.
    """
    found = {
        place: _file_hash(function)
        for place, function in _callables(task.config.to_dict(keep_callable=True))
        if not _stands_alone(function)
    }
    if not type(task).__module__.startswith("lm_eval.api."):
        found["class"] = _file_hash(type(task))
    return found


def _callables(value: Any, place: str = "") -> Iterator[tuple[str, Callable[..., Any]]]:
    if callable(value):
        yield place, value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _callables(inner, f"{place}.{key}".strip("."))
    elif isinstance(value, list | tuple):
        for number, inner in enumerate(value):
            yield from _callables(inner, f"{place}.{number}")


def _stands_alone(value: Callable[..., Any]) -> bool:
    """Whether the text of a function tells all of what its file does for it."""
    if type(value) is not FunctionType or value.__closure__ or hasattr(value, "__wrapped__"):
        return False
    if value.__defaults__ or value.__kwdefaults__:
        return False
    return all(_is_foreign(found, value) for found in globals_read(value).values())


def _is_foreign(value: Any, function: FunctionType) -> bool:
    """A module, or what comes from one; or nothing, which is a builtin."""
    if value is None or isinstance(value, ModuleType):
        return True
    named = isinstance(value, FunctionType | BuiltinFunctionType | type)
    return named and value.__module__ != function.__module__


def _file_hash(value: Callable[..., Any]) -> str:
    try:
        file = inspect.getsourcefile(inspect.unwrap(value))
    except TypeError:  # an object: its class has a file
        file = inspect.getsourcefile(type(value))
    content = Path(file).read_bytes() if file is not None and Path(file).exists() else b""
    name = getattr(value, "__qualname__", type(value).__qualname__)
    return hashlib.sha256(name.encode() + b"\n" + content).hexdigest()
