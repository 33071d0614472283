"""Multiple choice: which choice is best, and by how much the right one leads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Best = tuple[int | bytes, ...]


class ChoicePlan:
    """Compares the log-likelihoods of some questions' choices.

    Args:
        gold: each question's right choices.
        texts: each question's choices.
        asked: each question's number of requests; those for mutual information, which a task with
            that metric makes whatever metric is wanted, ask every choice once more after nothing.
        metric: lm-eval's metric; it says how log-likelihoods are normalised.
    """

    def __init__(
        self,
        gold: Sequence[Sequence[int]],
        texts: Sequence[Sequence[str]],
        asked: Sequence[int],
        metric: str,
    ) -> None:
        self._metric = metric
        counts = np.array([len(choices) for choices in texts])
        width = int(counts.max())
        self._there = np.arange(width) < counts[:, None]  # (questions, width)
        self._right = np.zeros_like(self._there)
        self._characters = np.ones(self._there.shape)
        self._bytes = np.ones(self._there.shape)
        for row, (right, choices) in enumerate(zip(gold, texts, strict=True)):
            self._right[row, list(right)] = True
            self._characters[row, : len(choices)] = [len(text) for text in choices]
            self._bytes[row, : len(choices)] = [len(text.encode()) for text in choices]
        starts = np.cumsum(asked) - asked
        self._index = np.where(self._there, starts[:, None] + np.arange(width), 0)
        self._alone = np.where(self._there, self._index + counts[:, None], 0)

    def compare(
        self, sums: NDArray[np.float32], greedy: NDArray[np.bool_]
    ) -> tuple[list[Best], NDArray[np.float32], NDArray[np.float32]]:
        """What decides each question, the gold choice's margin in nats, and the best choice.

        Args:
            sums: (requests,) log-likelihoods, question by question.
            greedy: (requests,) whether greedy decoding gives the choice.
        """
        raw = sums.astype(np.float64)[self._index]  # (questions, width)
        # Divisions by the length 0 are lm-eval's own, and decide alike.
        with np.errstate(divide="ignore", invalid="ignore"):
            views = {
                "acc": raw,
                "acc_norm": raw / self._characters,
                "acc_bytes": raw / self._bytes,
            }
        if self._metric == "acc_mutual_info":
            views["acc_mutual_info"] = raw - sums.astype(np.float64)[self._alone]
        bests = {
            name: np.where(self._there, view, -np.inf).argmax(1) for name, view in views.items()
        }
        decisive: list[Any] = [best.tolist() for best in bests.values()]
        if self._metric == "exact_match":
            decisive.append([row.tobytes() for row in greedy[self._index] & self._there])
        used = self._metric if self._metric in views else "acc"
        lengths = {"acc_norm": self._characters, "acc_bytes": self._bytes}.get(used)
        values = raw / np.maximum(lengths, 1) if lengths is not None else views[used]
        lead = np.where(self._right, values, -np.inf).max(1)
        other = np.where(self._there & ~self._right, values, -np.inf).max(1)
        margin = (lead - other).astype(np.float32)
        return list(zip(*decisive, strict=True)), margin, bests[used].astype(np.float32)


def gold_choices(
    task: Any, documents: Sequence[Any]
) -> tuple[list[list[int]], list[list[str]]] | None:
    """Every document's right choices and all of its choices, as an lm-eval task tells them.

    None where some document has no valid right choice, or no other one.
    """
    rights, texts = [], []
    for document in documents:
        right, choices = named_right(task, document)
        valid = sorted({one for one in right if isinstance(one, int) and 0 <= one < len(choices)})
        if not valid or len(valid) == len(choices):
            return None
        rights.append(valid)
        texts.append(choices)
    return rights, texts


def named_right(task: Any, document: Any) -> tuple[list[Any], list[str]]:
    """What a document says is right, texts as numbers of their choices; and all of its choices."""
    choices = [str(choice) for choice in task.doc_to_choice(document)]
    inputs = getattr(task, "multiple_input", 0)
    gold = task.doc_to_text(document) if inputs else task.doc_to_target(document)
    several = gold if isinstance(gold, list) else [gold]
    right = [
        choices.index(one) if isinstance(one, str) and one in choices else one for one in several
    ]
    return right, choices
