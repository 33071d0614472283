"""A user's own function on the merged model, as one task for each of its objectives."""

from __future__ import annotations

import hashlib
import inspect
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from evomerge.errors import CandidateError, ConfigurationError, Problem, nearest
from evomerge.fitness.function_hash import function_hash
from evomerge.fitness.item_failures import responses_of
from evomerge.protocols import ResidentModel
from evomerge.recipe import canonical_json
from evomerge.records import ItemId, Responses

Scores = Mapping[str, Any]


class PythonFitness:
    """A function that scores a model, called once per candidate for all of its objectives.

    It returns one entry per objective: the scores of its items (a sequence, array or tensor of
    numbers, higher is better), or a number, which counts as one item. A function with a parameter
    named `items` is told which items are wanted, as {objective: item ids}, and returns the scores
    of those alone, in that order; it is called for each objective by itself.

    The function must not change the model, and should answer alike for equal models: what it draws
    at random it must draw from a generator of its own, with a fixed seed.

    An item's score may be NaN if the function has an attribute `worst`: the score that such an item
    then has.

    Args:
        function: called with the model, and with `items` where it takes them.
        what: whether it gets the module, or its state dict (the tensors themselves, no copies).
    """

    def __init__(
        self, function: Callable[..., Scores], what: Literal["module", "state_dict"] = "module"
    ) -> None:
        if not callable(function):
            raise ConfigurationError(f"fitness: expected a function, got {function!r}")
        if what not in ("module", "state_dict"):
            hint = nearest(what, ("module", "state_dict"))
            raise ConfigurationError(Problem("fitness what", f"unknown: {what!r}", hint))
        self.function = function
        self.sha256 = function_hash(function)  # now, before its calls change what it refers to
        self.what = what
        worst = getattr(function, "worst", None)
        self.worst = None if worst is None else float(worst)
        self.takes_items = "items" in inspect.signature(function).parameters
        self._last: tuple[ResidentModel, int, dict[str, NDArray[np.float32]]] | None = None

    def tasks(self, example: Scores) -> dict[str, PythonTask]:
        """One task for each objective, with as many items as the example has scores.

        Raises:
            ConfigurationError: the example is not what such a function returns.
        """
        try:
            scores = _read_scores(example)
        except CandidateError as error:
            raise ConfigurationError(f"fitness: {error}") from None
        return {name: PythonTask(self, name, len(values)) for name, values in scores.items()}

    def measure(
        self, model: ResidentModel, items: Mapping[str, Sequence[ItemId]] | None = None
    ) -> dict[str, NDArray[np.float32]]:
        """The function's result for the model as it is now; of `items` where it takes them.

        Raises:
            CandidateError: the function failed, changed the model, or returned no finite numbers.
        """
        version = getattr(model, "version", None)
        if not self.takes_items and self._last is not None:
            known_model, known_version, scores = self._last
            if known_model is model and known_version == version:
                return scores
        scores = self._call(model, items)
        if not self.takes_items and version is not None:
            self._last = (model, version, scores)
        return scores

    def _call(
        self, model: ResidentModel, items: Mapping[str, Sequence[ItemId]] | None
    ) -> dict[str, NDArray[np.float32]]:
        module = model.module
        if module.training:
            module.eval()
        state = module.state_dict()
        before = writes_in_place(state)
        wanted = {"items": items} if self.takes_items else {}
        try:
            with torch.no_grad():
                result = self.function(state if self.what == "state_dict" else module, **wanted)
        except (CandidateError, MemoryError):
            raise
        except Exception as error:
            what = f"{type(error).__name__}: {error} ({self._line(error)})"
            raise CandidateError(f"fitness function failed: {what}") from error
        if writes_in_place(state) != before:
            raise CandidateError("the fitness function changed the model's tensors in place")
        return _read_scores(result)

    def _line(self, error: Exception) -> str:
        """Where in the user's file it happened; where at all, if it was not there."""
        frames = traceback.extract_tb(error.__traceback__)
        # An instance of a class has no file of its own, but its method has.
        routine = inspect.isroutine(self.function)
        try:
            file = inspect.getsourcefile(self.function if routine else type(self.function).__call__)
        except TypeError:
            file = None
        frame = next((frame for frame in reversed(frames) if frame.filename == file), frames[-1])
        return f"{Path(frame.filename).name}:{frame.lineno}: {frame.line}"


class PythonTask:
    """One objective of a `PythonFitness`; fulfils `protocols.Task`."""

    def __init__(self, fitness: PythonFitness, name: str, num_items: int) -> None:
        self.name = name
        self.forward_s = 0.0  # a user's function does not tell its forward passes apart
        self._fitness = fitness
        self._num_items = num_items

    @property
    def items(self) -> Sequence[ItemId]:
        """Positions in the scores that the function returns."""
        return range(self._num_items)

    @property
    def fingerprint(self) -> str:
        """sha256 of the function by its content, the objective's name, and its number of items."""
        fitness = self._fitness
        text = canonical_json(["python", fitness.sha256, fitness.what, self.name, self._num_items])
        return hashlib.sha256(text.encode()).hexdigest()

    def respond(self, model: ResidentModel, items: Sequence[ItemId]) -> Responses:
        """The scores of `items`, in their order.

        Raises:
            CandidateError: the function failed, returned other items than were expected, or no
                score for one and has no `worst`.
        """
        asked = np.asarray([int(item) for item in items], np.int64)
        if not len(asked):
            return Responses(self.name, asked, {"score": np.zeros(0, np.float32)})
        results = self._fitness.measure(model, {self.name: tuple(asked.tolist())})
        if self.name not in results:
            hint = nearest(self.name, results)
            raise CandidateError(f"the fitness function returned no {self.name!r} ({hint})")
        scores = results[self.name]
        expected = len(asked) if self._fitness.takes_items else self._num_items
        if len(scores) != expected:
            raise CandidateError(
                f"the fitness function returned {len(scores)} scores of {self.name!r}, "
                f"expected {expected}"
            )
        chosen = scores if self._fitness.takes_items else scores[asked]
        return responses_of(self.name, asked.tolist(), {"score": chosen}, {}, self._fitness.worst)


def _read_scores(result: Any) -> dict[str, NDArray[np.float32]]:
    """Per objective an array of shape (items,).

    Raises:
        CandidateError: the result is not a mapping of names to numbers.
    """
    if not isinstance(result, Mapping) or not result:
        raise CandidateError(
            "the fitness function must return {objective: scores}, got "
            f"{type(result).__name__}{' without entries' if isinstance(result, Mapping) else ''}"
        )
    scores = {}
    for name, values in result.items():
        if isinstance(values, torch.Tensor):
            values = values.detach().float().cpu().numpy()
        try:
            array = np.asarray(values, np.float32)
        except (TypeError, ValueError):
            raise CandidateError(
                f"the fitness function returned {type(values).__name__} as {name!r}, "
                "expected numbers"
            ) from None
        if array.ndim > 1 or not array.size:
            raise CandidateError(
                f"the fitness function returned shape {array.shape} as {name!r}, expected (items,)"
            )
        scores[str(name)] = array.reshape(-1).copy()
    return scores


def writes_in_place(state: Mapping[str, Any]) -> int:
    """A count that grows with every write in place that torch sees."""
    return sum(
        value._version
        for value in state.values()
        if isinstance(value, torch.Tensor) and not value.is_inference()
    )
