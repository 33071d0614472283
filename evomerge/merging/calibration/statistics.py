"""Statistics of models over a calibration set: collected once, kept on the disk, read from there.

A file is of one model, one kind and the tokens that were read: whoever asks for the same finds it.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from evomerge.checkpoints.anatomy import Anatomy
from evomerge.checkpoints.input_scales import says_scales
from evomerge.checkpoints.open import Checkpoint, open_checkpoint
from evomerge.checkpoints.staging import staged_folder
from evomerge.errors import ConfigurationError, EvomergeError, ModelError, Problem
from evomerge.files import cache_folder, disk_errors, fsync
from evomerge.merging.calibration.activations import linear_inputs, sum_inputs
from evomerge.merging.calibration.gradients import LABELS, floating_shapes, sum_squares
from evomerge.merging.calibration.in_turn import Room, merged_in_turn
from evomerge.merging.calibration.sums import Sums
from evomerge.merging.calibration.texts import Calibration, check_models
from evomerge.merging.input_scales import apply_scales
from evomerge.merging.module import module_of, tokenizer_of
from evomerge.protocols import Progress
from evomerge.recipe import canonical_json

VERSION = 1  # of what is computed; files of others are not read
FOLDER = "calibration"  # of the user's cache folder
KINDS: dict[str, str] = {  # what people are told of each
    "gram": "Gram matrices of what goes into linear layers",
    "mean": "mean magnitudes of what goes into linear layers",
    **{f"fisher_{labels}": f"squared gradients ({labels} labels)" for labels in LABELS},
}
_DATA, _FACTS = "statistics.safetensors", "facts.json"


class Statistics(Protocol):
    """What operators are told of models."""

    @property
    def digest(self) -> str:
        """Of the calibration set."""
        ...

    def of(self, kind: str, model: str) -> Mapping[str, Tensor]:
        """A model's statistics by the names of its tensors, float32; those that have none lack.

        `gram`: X'X / tokens, shape (in, in), of what goes into a linear layer's weight; `mean`: the
        mean of |x|, shape (in,); `fisher_...`: mean squared gradients, in the tensor's shape.
        """
        ...

    def norm(self, kind: str, model: str) -> float:
        """The L2 norm of all of them together."""
        ...

    def in_turn(
        self, anatomy: Anatomy, sources: tuple[str, ...], alpha: float, room: Room
    ) -> Mapping[str, Tensor]:
        """All floating tensors of the sources' RegMean++ (see in_turn.py), float32.

        anatomy: the base's; room: where arrays are kept.
        """
        ...


class Collected:
    """Statistics that are collected when they are first asked for, unless they are on the disk.

    Args:
        calibration: what is read.
        checkpoints: by the names that recipes use.
        base: whose tokenizer makes tokens of the texts.
        progress: told of what is collected.

    Raises:
        ConfigurationError: texts of a model that there is not.
    """

    def __init__(
        self,
        calibration: Calibration,
        checkpoints: Mapping[str, Checkpoint],
        base: str,
        progress: Progress | None = None,
    ) -> None:
        check_models(calibration, checkpoints)
        self.calibration, self._checkpoints, self._base = calibration, checkpoints, base
        self.progress = progress
        self._opened: dict[tuple[str, str], tuple[dict[str, Tensor], float]] = {}
        self._ids: dict[tuple[str, ...], list[list[int]]] = {}

    @property
    def digest(self) -> str:
        """As the protocol says."""
        return self.calibration.sha256

    def of(self, kind: str, model: str) -> Mapping[str, Tensor]:
        """As the protocol says.

        Raises:
            ConfigurationError: the models are no transformers folders with a tokenizer, or have
                nothing of what is asked for.
        """
        return self._found(kind, model)[0]

    def norm(self, kind: str, model: str) -> float:
        """As the protocol says."""
        return self._found(kind, model)[1]

    def in_turn(
        self, anatomy: Anatomy, sources: tuple[str, ...], alpha: float, room: Room
    ) -> Mapping[str, Tensor]:
        """As the protocol says.

        Raises:
            ConfigurationError: the models are no transformers folders with one list of layers.
        """
        origin = self._checkpoints[self._base]
        sequences = {source: self.tokens(source) for source in sources}
        if says_scales(origin.config):
            what = "scales its layers' inputs: layers cannot be run one by one"
            raise ConfigurationError(Problem(origin.where, what, "regmean can"))

        def report(done: int, total: int) -> None:
            if self.progress is not None:
                self.progress("merging layer after layer", done, total)

        with computing_on(self.calibration.threads), torch.no_grad():
            module = _module_of(origin)
            return merged_in_turn(
                module, self._checkpoints, anatomy, self._base, sequences, alpha, room, report
            )

    def tokens(self, model: str) -> list[list[int]]:
        """What a model reads: each text's first tokens, of texts that have two.

        Raises:
            ConfigurationError: there is no tokenizer, or no such text.
        """
        texts = self.calibration.read_by(model)
        if texts not in self._ids:
            if self._tokenizer is None:
                what = "has no tokenizer, which the calibration texts need"
                raise ConfigurationError(Problem(self._checkpoints[self._base].where, what))
            encoded = [self._tokenizer(text, verbose=False)["input_ids"] for text in texts]
            cut = [list(ids[: self.calibration.length]) for ids in encoded]
            self._ids[texts] = [ids for ids in cut if len(ids) > 1]
        if not self._ids[texts]:
            what = f"none of the {len(texts)} texts has two tokens"
            raise ConfigurationError(Problem(f"calibration of {model}", what))
        return self._ids[texts]

    @cached_property
    def _tokenizer(self) -> Any:
        return tokenizer_of(self._checkpoints[self._base])

    def is_collected(self, kind: str, model: str) -> bool:
        """Whether it is on the disk, and whole."""
        return _opened(self._folder(kind, model)) is not None

    def _folder(self, kind: str, model: str) -> Path:
        checkpoint = self._checkpoints[model]
        content = [VERSION, kind, checkpoint.sha256(), checkpoint.config, self.tokens(model)]
        content.append(self.calibration.threads)
        key = hashlib.sha256(canonical_json(content).encode()).hexdigest()
        return cache_folder() / FOLDER / f"{kind}-{key[:32]}"

    def _found(self, kind: str, model: str) -> tuple[dict[str, Tensor], float]:
        if (kind, model) not in self._opened:
            folder = self._folder(kind, model)
            found = _opened(folder)
            if found is None:
                with disk_errors(folder), _alone(folder):
                    found = _opened(folder)  # another process may have made it meanwhile
                    if found is None:
                        self._collect(kind, model, folder)
                        found = _read(folder)
            self._opened[kind, model] = found
        return self._opened[kind, model]

    def _collect(self, kind: str, model: str, folder: Path) -> None:
        checkpoint, sequences = self._checkpoints[model], self.tokens(model)

        def report(done: int, total: int) -> None:
            if self.progress is not None:
                self.progress(f"reading texts for {kind} of {model}", done, total)

        report(0, len(sequences))
        with computing_on(self.calibration.threads), staged_folder(folder) as staged:
            module = _module_of(checkpoint)
            norm = 0.0
            if kind.startswith("fisher_"):
                shapes = floating_shapes(checkpoint)
                names = {name: name for name in shapes}
                sums = Sums(staged / _DATA, shapes)
                labels = kind.removeprefix("fisher_")
                sum_squares(labels, module, checkpoint, sequences, sums, report)
                norm = sum(float(t.norm()) ** 2 for t in sums.tensors.values()) ** 0.5
            else:
                sample = torch.tensor([sequences[0][:4]])
                with torch.no_grad():
                    inputs = linear_inputs(module, checkpoint, sample)
                if not inputs:
                    what = f"{type(module).__name__} has no linear layers whose weights it stores"
                    hint = "its merge would be the plain mean"
                    raise ConfigurationError(Problem(checkpoint.where, what, hint))
                names = {name: one.names[0] for one in inputs for name in one.names}
                shape = {one.names[0]: (one.width,) for one in inputs}
                shapes = {n: s * 2 if kind == "gram" else s for n, s in shape.items()}
                sums = Sums(staged / _DATA, shapes)
                sum_inputs(kind, module, inputs, sequences, sums, report)
            self._check_finite(checkpoint, sums)
            sums.close()
            fsync(staged / _DATA)
            facts = {"kind": kind, "names": names, "norm": norm, "texts": len(sequences)}
            (staged / _FACTS).write_text(json.dumps(facts), encoding="utf-8")
            fsync(staged / _FACTS)

    @staticmethod
    def _check_finite(checkpoint: Checkpoint, sums: Sums) -> None:
        bad = [name for name, total in sums.tensors.items() if not torch.isfinite(total).all()]
        if bad:
            what = f"what is collected there is not finite, first of {bad[0]}"
            raise ModelError(Problem(checkpoint.where, what))


def _module_of(checkpoint: Checkpoint) -> nn.Module:
    """A model in float32, without gradients, its layers' inputs scaled where its config says so.

    Raises:
        ModelError: it is no transformers folder, or transformers cannot make it.
    """
    from transformers.utils import logging as transformers_logging

    if checkpoint.path is None or not checkpoint.config:
        what = "is no transformers folder: what happens inside it cannot be seen"
        raise ModelError(Problem(checkpoint.where, what))
    transformers_logging.disable_progress_bar()  # there is one already
    module = module_of(checkpoint, torch.float32).eval().requires_grad_(False)
    return apply_scales(module) if says_scales(checkpoint.config) else module


def _opened(folder: Path) -> tuple[dict[str, Tensor], float] | None:
    """What is in a folder, mapped; None if it is not there, or damaged."""
    try:
        return _read(folder)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, EvomergeError):
        return None


def _read(folder: Path) -> tuple[dict[str, Tensor], float]:
    facts = json.loads((folder / _FACTS).read_text(encoding="utf-8"))
    stored = open_checkpoint(folder / _DATA, name=folder.name)
    found = {name: stored.tensor(place) for name, place in facts["names"].items()}
    return found, float(facts["norm"])


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One process at a time collects the same; the system lets go of the lock if it dies."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".lock").open("w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(0.1)
        yield


@contextmanager
def computing_on(threads: int) -> Iterator[None]:
    """So many threads, whatever the process has otherwise."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def sizes_of(kinds: Sequence[str], statistics: Statistics, model: str) -> dict[str, int]:
    """Bytes of each kind on the disk; what several tensors share counts once."""
    return {
        kind: sum({t.data_ptr(): t.nbytes for t in statistics.of(kind, model).values()}.values())
        for kind in kinds
    }
