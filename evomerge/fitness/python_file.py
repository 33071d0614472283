"""A task that is a user's own code, named in a fitness file."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import operator
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

from evomerge.errors import CandidateError, ConfigurationError, EvomergeError, Problem, nearest
from evomerge.fitness.function_hash import function_hash
from evomerge.fitness.item_failures import responses_of
from evomerge.fitness.options import ALLOW_CODE
from evomerge.fitness.python_task import writes_in_place
from evomerge.protocols import ResidentModel
from evomerge.recipe import canonical_json
from evomerge.records import ItemId, Responses

PREFIX = "python:"


class PythonFileTask:
    """A function or a class of the user's; fulfils `protocols.Task`.

    A function `f(module, items, **options)` returns the scores of these items in that order (higher
    is better); it says how many items there are by an attribute `num_items`, or the fitness file
    does. A class is made with the options; it has `items`, or `__len__`, and
    `respond(model, items)`, which returns `Responses` or scores.

    A score may be NaN, or an exception where one is at hand: that item has failed. Its score is
    then `worst`, an attribute of the function or object, or an option; without one the candidate
    fails.

    Args:
        name: the task's name.
        code: `package.module.name`, or `path/to/file.py:name`.
        num_items: of a function.
        worst: the lowest score that there is.
        allow_code: whether the user has allowed code to run.
        options: given to the function at each call, or to the class once.

    Raises:
        ConfigurationError: code is not allowed; there is no such code, or it is no task.
    """

    def __init__(
        self,
        name: str,
        code: str,
        *,
        num_items: int | None = None,
        worst: float | None = None,
        allow_code: bool = False,
        **options: Any,
    ) -> None:
        self.name = name
        self.forward_s = 0.0  # a user's code does not tell its forward passes apart
        if not allow_code:
            file, _, what = code.rpartition(":") if ":" in code else code.rpartition(".")
            message = f"would run {what} of {file}"
            raise ConfigurationError(Problem(f"task {name} kind", message, ALLOW_CODE))
        found, module = load(code, f"task {name} kind")
        self._options = options
        self._called: Callable[..., Any] | None = None
        if inspect.isclass(found):
            self._object = _made(found, options, name)
            self.items = _items_of(self._object, name)
            self._sha256 = _source_hash(found, module)
        else:
            self._object = found
            self.items = range(_count(found, num_items, name))
            self._called = found
            self._sha256 = function_hash(found)
        self.worst = _worst(self._object, worst, name)

    @property
    def fingerprint(self) -> str:
        """sha256 of the code by its content, of the options, and of the items.

        Data that a class reads is not in it, unless the class says so by a `fingerprint`.
        """
        own = getattr(self._object, "fingerprint", "") if self._called is None else ""
        items = len(self.items) if self._called is not None else list(self.items)
        own = str(own() if callable(own) else own)
        content = [PREFIX, self._sha256, own, items, self.worst, _plain(self._options)]
        return hashlib.sha256(canonical_json(content).encode()).hexdigest()

    def respond(self, model: ResidentModel, items: Sequence[ItemId]) -> Responses:
        """Responses in the order of `items`.

        Raises:
            CandidateError: the code failed, or did not return a number for each item, in the order
                in which they were asked.
        """
        asked = [int(item) for item in items]
        module = model.module
        if module.training:
            module.eval()
        state = module.state_dict()
        before = writes_in_place(state)
        try:
            with torch.no_grad():
                if self._called is not None:
                    result = self._called(module, tuple(asked), **self._options)
                else:
                    result = self._object.respond(model, tuple(asked))
        except (CandidateError, EvomergeError, MemoryError):
            raise
        except Exception as error:
            frame = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{Path(frame.filename).name}:{frame.lineno}"
            raise CandidateError(f"{type(error).__name__}: {error} ({where})") from error
        if writes_in_place(state) != before:
            raise CandidateError("the code changed the model's tensors in place")
        if isinstance(result, Responses):
            _check_rows(result, asked)
            return responses_of(
                self.name, asked, result.columns, result.failures, self.worst, result.texts
            )
        values, failures = _scores(result, asked)
        return responses_of(self.name, asked, {"score": values}, failures, self.worst)


def load(code: str, where: str) -> tuple[Any, ModuleType]:
    """What `package.module.name` or `path/to/file.py:name` names, and its module.

    Raises:
        ConfigurationError: there is none, or importing it fails.
    """
    place, _, name = code.rpartition(":") if ":" in code else code.rpartition(".")
    if not place or not name:
        what = f"names no code: {code!r}"
        hint = "python:package.module.name or python:path/to/file.py:name"
        raise ConfigurationError(Problem(where, what, hint))
    try:
        module = _module_of(Path(place)) if ":" in code else importlib.import_module(place)
    except FileNotFoundError:
        raise ConfigurationError(Problem(where, f"no such file: {place}")) from None
    except Exception as error:  # whatever a user's module does when it is imported
        what = f"{place} cannot be imported: {type(error).__name__}: {error}"
        raise ConfigurationError(Problem(where, what)) from error
    if not hasattr(module, name):
        names = [key for key, value in vars(module).items() if callable(value)]
        raise ConfigurationError(Problem(where, f"no {name!r} in {place}", nearest(name, names)))
    found = getattr(module, name)
    if not callable(found):
        what = f"{name} is neither a function nor a class"
        raise ConfigurationError(Problem(where, what))
    return found, module


def _module_of(file: Path) -> ModuleType:
    """The module of a file; the same one as long as the process lives."""
    if not file.is_file():
        raise FileNotFoundError(file)
    digest = hashlib.sha256(str(file.resolve()).encode() + file.read_bytes()).hexdigest()
    name = f"_evomerge_task_{digest[:16]}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, file)
        if spec is None or spec.loader is None:
            raise ImportError(f"{file.name} is no Python file")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # before it runs: dataclasses look for their module
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
    return sys.modules[name]


def _source_hash(found: type, module: ModuleType) -> str:
    """sha256 of the whole file of a class: what its methods lead to stands there, mostly.

    Where the file that was named has imported the class, both files count.
    """
    text = found.__qualname__
    for place in dict.fromkeys((module, sys.modules.get(found.__module__, module))):
        try:
            text += f"\n{inspect.getsource(place)}"
        except (OSError, TypeError):
            continue  # no text: an extension module
    return hashlib.sha256(text.encode()).hexdigest()


def _made(found: type, options: Mapping[str, Any], name: str) -> Any:
    try:
        made = found(**options)
    except EvomergeError:
        raise
    except Exception as error:
        what = f"{found.__qualname__} cannot be made: {type(error).__name__}: {error}"
        raise ConfigurationError(Problem(f"task {name}", what)) from error
    if not callable(getattr(made, "respond", None)):
        what = f"{found.__qualname__} has no method respond(model, items)"
        raise ConfigurationError(Problem(f"task {name}", what))
    return made


def _items_of(made: Any, name: str) -> Sequence[ItemId]:
    items = getattr(made, "items", None)
    if items is None and hasattr(made, "__len__"):
        items = range(len(made))
    if items is None or not hasattr(items, "__len__") or not len(items):
        what = f"{type(made).__qualname__} has neither `items` nor a length"
        raise ConfigurationError(Problem(f"task {name}", what))
    try:
        return [operator.index(item) for item in items]
    except TypeError as error:
        what = f"the items of {type(made).__qualname__} are no whole numbers: {error}"
        raise ConfigurationError(Problem(f"task {name} items", what)) from None


def _count(function: Any, num_items: int | None, name: str) -> int:
    told = getattr(function, "num_items", 1) if num_items is None else num_items
    if isinstance(told, int | np.integer) and not isinstance(told, bool) and told >= 1:
        return int(told)
    what = f"should be a whole number from 1, got {told!r}"
    raise ConfigurationError(Problem(f"task {name} num_items", what))


def _worst(found: Any, worst: float | None, name: str) -> float | None:
    told = getattr(found, "worst", None) if worst is None else worst
    if told is None:
        return None
    if isinstance(told, int | float | np.number) and np.isfinite(told):
        return float(told)
    what = f"should be a finite number, got {told!r}"
    raise ConfigurationError(Problem(f"task {name} worst", what))


def _check_rows(result: Responses, asked: Sequence[ItemId]) -> None:
    """Refuse responses that are not those to `asked`.

    Raises:
        CandidateError: other items, another order, no scores, or columns of other lengths.
    """
    items = np.asarray(result.items).tolist()
    if items != list(asked):
        what = f"the responses are to the items {_few(items)}, asked were {_few(asked)}"
        raise CandidateError(f"{what}: return them in that order")
    if "score" not in result.columns:
        hint = nearest("score", result.columns)
        raise CandidateError(f"the responses have no column 'score'{f' ({hint})' if hint else ''}")
    for name, values in result.columns.items():
        if np.shape(values) != (len(asked),):
            what = f"the column {name!r} has shape {np.shape(values)}, expected ({len(asked)},)"
            raise CandidateError(what)
    if result.texts is not None and len(result.texts) != len(asked):
        raise CandidateError(f"{len(result.texts)} texts were returned for {len(asked)} items")


def _few(items: Any) -> str:
    listed = list(items) if isinstance(items, Sequence) else [items]
    return ", ".join(map(str, listed[:8])) + (", ..." if len(listed) > 8 else "")


def _scores(result: Any, asked: Sequence[ItemId]) -> tuple[Any, dict[ItemId, str]]:
    """Scores, (items,), NaN where an item failed; and why.

    Raises:
        CandidateError: not one for each item.
    """
    if isinstance(result, torch.Tensor):
        result = result.detach().float().cpu().reshape(-1).tolist()
    values = [result] if isinstance(result, int | float | np.number) else list(result)
    if len(values) != len(asked):
        raise CandidateError(f"{len(values)} scores were returned for {len(asked)} items")
    failures = {
        item: f"{type(value).__name__}: {value}"
        for item, value in zip(asked, values, strict=True)
        if isinstance(value, Exception)
    }
    try:
        numbers = [np.nan if isinstance(value, Exception) else float(value) for value in values]
    except (TypeError, ValueError) as error:
        raise CandidateError(f"a score is no number: {error}") from None
    return np.array(numbers, np.float32), failures


def _plain(options: Mapping[str, Any]) -> Any:
    return {str(key): repr(value) for key, value in sorted(options.items())}
