"""Accuracy of a transformers classifier of texts or images on a local data set."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import log_softmax

from evomerge.errors import CandidateError, ConfigurationError, Problem, nearest
from evomerge.fitness.forward import ForwardClock, device_of
from evomerge.fitness.item_failures import responses_of
from evomerge.fitness.prompts import max_length
from evomerge.fitness.texts import read_records, text_of
from evomerge.protocols import ResidentModel
from evomerge.records import ItemId, Responses


class ClassificationTask:
    """Whether a classifier's best class is the right one; fulfils `protocols.Task`.

    The model is what the base's config names: `BertForSequenceClassification`,
    `ViTForImageClassification`, and so on. Texts are cut at the model's length.

    Columns: `score`, 1 or 0; `margin`, the right class's logit minus the best other one's;
    `choice`, the best class; `entropy` of the predicted classes, in nats, which needs no labels.

    Args:
        name: the task's name.
        path: .jsonl or .csv with texts, or .npz with images.
        text: the field of the text; two fields for pairs of texts.
        label: the field of the right class: its number, or its name in the model's config.
        images: the array of images in an .npz, (items, channels, height, width): floats as the
            model takes them, or bytes, which are divided by 255.
        labels: the array of the right classes, (items,).
        batch_size: rows of a forward pass.
        max_length: tokens of a text.
        limit: use the first items only.
        allow_code: changes nothing here.

    Raises:
        ConfigurationError: the data cannot be read.
    """

    def __init__(
        self,
        name: str,
        *,
        path: str,
        text: str | Sequence[str] = "text",
        label: str = "label",
        images: str = "images",
        labels: str = "labels",
        batch_size: int = 32,
        max_length: int | None = None,
        limit: int | None = None,
        allow_code: bool = False,  # noqa: ARG002 - there is none
    ) -> None:
        self.name = name
        self.clock = ForwardClock()
        self._batch_size, self._max_length = batch_size, max_length
        where, file = f"task {name}", Path(path)
        self._images: Tensor | None = None
        self._texts: list[tuple[str, ...]] = []
        if file.suffix == ".npz":
            self._images, self._labels = _images_of(where, file, images, labels, limit)
        else:
            fields = (text,) if isinstance(text, str) else tuple(text)
            self._texts, self._labels = _texts_of(where, file, fields, label, limit)
        if not self._labels:
            raise ConfigurationError(Problem(where, f"{file} holds no items"))

    @property
    def items(self) -> Sequence[ItemId]:
        """Positions in the data set."""
        return range(len(self._labels))

    @property
    def fingerprint(self) -> str:
        """sha256 of texts or images, labels, and how they are asked."""
        found = hashlib.sha256(repr([self._labels, self._texts]).encode())
        found.update(repr(["classification", self._batch_size, self._max_length]).encode())
        if self._images is not None:
            found.update(repr(tuple(self._images.shape)).encode())
            found.update(self._images.numpy().tobytes())
        return found.hexdigest()

    @property
    def forward_s(self) -> float:
        """Seconds spent in the model's forward passes."""
        return self.clock.seconds

    def respond(self, model: ResidentModel, items: Sequence[ItemId]) -> Responses:
        """Responses in the order of `items`.

        Raises:
            CandidateError: the logits of no item are finite.
            ConfigurationError: a label is not one of the model's classes, or it has no tokenizer.
        """
        asked = [int(item) for item in items]
        if not asked:
            return Responses(self.name, np.zeros(0, np.int64), {"score": np.zeros(0, np.float32)})
        logits = self._logits(model, asked)
        config: Any = model.module.config
        classes = _classes(config.label2id)
        gold = torch.tensor([self._class(item, classes, logits.shape[-1]) for item in asked])
        rows = torch.arange(len(asked))
        others = logits.clone()
        others[rows, gold] = -torch.inf
        choice = logits.argmax(-1)
        log_p = log_softmax(logits, -1)
        found = {
            "score": (choice == gold).float(),
            "margin": logits[rows, gold] - others.max(-1).values,
            "choice": choice.float(),
            "entropy": torch.special.entr(log_p.exp()).sum(-1),
        }
        columns: dict[str, NDArray[np.float32]] = {k: v.numpy() for k, v in found.items()}
        broken = (~torch.isfinite(logits).all(-1)).tolist()
        failures = {i: "a logit is not finite" for i, bad in zip(asked, broken, strict=True) if bad}
        return responses_of(self.name, asked, columns, failures, 0.0)

    def _logits(self, model: ResidentModel, asked: Sequence[ItemId]) -> Tensor:
        """(items, classes) in float32; batches are as the items stand."""
        module, parts = model.module, []
        for start in range(0, len(asked), self._batch_size):
            inputs = self._inputs(model, asked[start : start + self._batch_size])
            device = device_of(module)
            with torch.inference_mode(), self.clock:
                output = module(**{name: value.to(device) for name, value in inputs.items()})
            logits = getattr(output, "logits", None)
            if logits is None or logits.dim() != 2:
                what = f"{type(module).__name__} gives no logits for classes"
                hint = "its config.json names the class in `architectures`"
                raise ConfigurationError(Problem(f"task {self.name}", what, hint))
            parts.append(logits.float().cpu())
        logits = torch.cat(parts)
        if logits.shape[-1] < 2:
            raise CandidateError("a classifier has two classes or more")
        return logits

    def _inputs(self, model: ResidentModel, asked: Sequence[ItemId]) -> Mapping[str, Tensor]:
        if self._images is not None:
            pixels = self._images[list(asked)]
            pixels = pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels
            dtype = next(model.module.parameters()).dtype
            return {"pixel_values": pixels.to(dtype)}
        if model.tokenizer is None:
            raise ConfigurationError(Problem(f"task {self.name}", "the model has no tokenizer"))
        longest = max_length(model.module.config, model.tokenizer)
        columns = zip(*(self._texts[item] for item in asked), strict=True)
        encoded: Mapping[str, Tensor] = model.tokenizer(
            *(list(column) for column in columns),
            padding=True,
            truncation=True,
            max_length=min(self._max_length or longest, longest),
            return_tensors="pt",
        )
        return dict(encoded)

    def problems_with(self, config: Mapping[str, Any]) -> list[Problem]:
        """What a model of that config.json could not answer: its classes are not those of the data.

        Where the config tells no classes, that is seen when the first model is asked.
        """
        names = _classes(config.get("label2id"))
        if not (count := len(config.get("id2label") or names)):
            return []
        first = {label: item for item, label in reversed(list(enumerate(self._labels)))}
        problems: list[Problem] = []
        for item in sorted(first.values()):
            try:
                self._class(item, names, count)
            except ConfigurationError as error:
                problems += error.problems
        return problems

    def _class(self, item: ItemId, names: Mapping[str, int], count: int) -> int:
        """The number of an item's right class.

        Args:
            item: the item.
            names: class -> its number, as the model's config tells.
            count: the number of classes.

        Raises:
            ConfigurationError: the model has no such class.
        """
        label = self._labels[item]
        number = names.get(label, -1) if isinstance(label, str) else label
        if isinstance(label, str) and number < 0 and label.lstrip("-").isdigit():  # a .csv's
            number = int(label)
        if 0 <= number < count:
            return number
        where = f"task {self.name} item {item}"
        what = f"label {label!r} is none of the model's {count} classes"
        raise ConfigurationError(Problem(where, what, nearest(str(label), names)))


def _classes(label2id: Mapping[str, Any] | None) -> dict[str, int]:
    return {str(name): int(number) for name, number in (label2id or {}).items()}


def _images_of(
    where: str, file: Path, images: str, labels: str, limit: int | None
) -> tuple[Tensor, list[str | int]]:
    """Images and labels of an .npz; nothing in it is unpickled.

    Raises:
        ConfigurationError: it cannot be read, lacks an array, or their shapes do not fit.
    """
    found, names = _arrays(where, file, (images, labels))
    for key, name in (("images", images), ("labels", labels)):
        if name not in found:
            what = f"no array {name!r} in {file}"
            raise ConfigurationError(Problem(f"{where} {key}", what, nearest(name, names)))
    pixels, right = found[images], found[labels]
    if pixels.ndim != 4 or right.shape != pixels.shape[:1]:
        what = f"shapes {pixels.shape} and {right.shape}"
        hint = "expected (items, channels, height, width) and (items,)"
        raise ConfigurationError(Problem(f"{where} {file}", what, hint))
    if pixels.dtype.kind not in "uif" or right.dtype.kind not in "uiU":
        what = f"types {pixels.dtype} and {right.dtype}"
        hint = "expected numbers, and whole numbers or names"
        raise ConfigurationError(Problem(f"{where} {file}", what, hint))
    kept = pixels[:limit] if pixels.dtype == np.uint8 else pixels[:limit].astype(np.float32)
    return torch.from_numpy(kept), right[:limit].tolist()


def _arrays(
    where: str, file: Path, wanted: Sequence[str]
) -> tuple[dict[str, NDArray[Any]], list[str]]:
    """The wanted arrays that an .npz has, and the names of all that it has."""
    try:
        with file.open("rb") as opened:
            arrays = np.load(opened, allow_pickle=False)
            if not isinstance(arrays, np.lib.npyio.NpzFile):
                raise ValueError("is no .npz, which holds named arrays")
            return {name: arrays[name] for name in wanted if name in arrays}, list(arrays)
    except Exception as error:
        # Of damaged files numpy and zipfile raise what they like: BadZipFile, EOFError, zlib's, ...
        what = f"{file}: {error or 'is empty'}"
        raise ConfigurationError(Problem(f"{where} path", what)) from None


def _texts_of(
    where: str, file: Path, fields: Sequence[str], label: str, limit: int | None
) -> tuple[list[tuple[str, ...]], list[str | int]]:
    """Texts and labels of a table.

    Raises:
        ConfigurationError: it cannot be read, or lacks a field.
    """
    texts: list[tuple[str, ...]] = []
    labels: list[str | int] = []
    for number, record in enumerate(read_records(where, file)[:limit]):
        texts.append(tuple(text_of(where, file, number, record, field) for field in fields))
        value = record.get(label)
        if isinstance(value, bool) or not isinstance(value, int | str) or value == "":
            place, what = f"{where}: {file}, record {number + 1}", f"no label {label!r}"
            raise ConfigurationError(Problem(place, what, nearest(label, map(str, record))))
        labels.append(value)
    return texts, labels
