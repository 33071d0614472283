"""Scoring all choices of a question in one sequence, in which what they share stands once.

The sequences of a question make a tree: tokens from the root to a leaf are one sequence. The tree
is laid out in depth-first order and a mask lets each token see its ancestors alone, at the position
that it has in its own sequence; so the numbers are those of the separate sequences, but for last
bits. (Tree attention: Miao et al. 2023, SpecInfer, https://arxiv.org/abs/2305.09781, section 4.2.)

Not covered: models whose layers do not take such a mask; `TreeProbe` finds them.
"""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from evomerge.fitness.forward import Tokens, device_of, padded

_FULL, _WINDOW = "full_attention", "sliding_attention"


@dataclass(frozen=True)
class TokenTree:
    """Sequences that share their beginnings, in depth-first order.

    A token's descendants stand right after it, up to its end; so a token is seen by those alone.
    """

    tokens: Tokens
    depths: tuple[int, ...]  # position of each token in its sequences
    ends: tuple[int, ...]  # one behind the last descendant
    paths: Mapping[Tokens, tuple[int, ...]]  # sequence -> where its tokens stand

    @classmethod
    def of(cls, sequences: Sequence[Tokens]) -> TokenTree:
        """The tree of some sequences; in sorted order they are its depth-first walk."""
        tokens: list[int] = []
        depths: list[int] = []
        ends: list[int] = []
        paths: dict[Tokens, tuple[int, ...]] = {}
        path: list[int] = []
        for sequence in sorted(set(sequences)):
            shared = 0
            while shared < min(len(path), len(sequence)) and (
                tokens[path[shared]] == sequence[shared]
            ):
                shared += 1
            for node in path[shared:]:
                ends[node] = len(tokens)
            del path[shared:]
            for depth in range(shared, len(sequence)):
                path.append(len(tokens))
                tokens.append(sequence[depth])
                depths.append(depth)
                ends.append(0)
            paths[sequence] = tuple(path)
        for node in path:
            ends[node] = len(tokens)
        return cls(tuple(tokens), tuple(depths), tuple(ends), paths)


@dataclass(frozen=True)
class TreeRows:
    """Trees as the rows of a forward pass, padded on the right."""

    input_ids: Tensor  # (rows, length)
    position_ids: Tensor  # (rows, length)
    ends: Tensor  # (rows, length)

    @classmethod
    def of(cls, trees: Sequence[TokenTree]) -> TreeRows:
        """One row for each tree."""
        length = max(len(tree.tokens) for tree in trees)
        shape = (len(trees), length)
        position_ids = torch.zeros(shape, dtype=torch.long)
        ends = torch.arange(1, length + 1).repeat(len(trees), 1)  # padding sees itself
        for row, tree in enumerate(trees):
            size = len(tree.tokens)
            position_ids[row, :size] = torch.tensor(tree.depths)
            ends[row, :size] = torch.tensor(tree.ends)
        return cls(padded([tree.tokens for tree in trees]), position_ids, ends)

    @property
    def depth(self) -> int:
        """Length of the longest sequence."""
        return int(self.position_ids.max()) + 1

    def inputs(self, module: nn.Module, *, masked: bool = True) -> dict[str, Any]:
        """What the model is called with; unmasked, all tokens see all before them."""
        device = device_of(module)
        ends = self.ends.to(device)
        place = torch.arange(ends.shape[1], device=device)
        seen = place[:, None] >= place  # (token, what it may see)
        if masked:
            seen = seen & (place[:, None] < ends[:, None, :])  # (rows, token, what it may see)
        else:
            seen = seen.expand(len(ends), -1, -1)
        dtype = _dtype_of(module)
        # Added to attention scores: eager attention takes no flags.
        mask = torch.zeros(seen.shape, dtype=dtype, device=device)
        mask.masked_fill_(~seen, torch.finfo(dtype).min)
        inputs: dict[str, Any] = {
            "input_ids": self.input_ids.to(device),
            "position_ids": self.position_ids.to(device),
            "attention_mask": mask[:, None],
        }
        if "use_cache" in inspect.signature(module.forward).parameters:
            inputs["use_cache"] = False
        return inputs


def logits_at(module: nn.Module, inputs: Mapping[str, Any], positions: Tensor) -> Tensor:
    """Logits of shape (positions, vocabulary), numbered within rows * length.

    The output head gets only the hidden states that are asked for, where the model hands it all.
    Fewer rows of a matrix product may differ from many in their last bits.
    """
    shape = inputs["input_ids"].shape
    reduced = False

    def choose(_: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...] | None:
        nonlocal reduced
        (hidden,) = arguments
        if hidden.shape[:2] != shape:
            return None
        reduced = True
        # The last layers may be on another device than the first.
        return (hidden.flatten(0, 1)[positions.to(hidden.device)][None],)

    find = getattr(module, "get_output_embeddings", None)
    head = find() if find is not None else None
    handle = head.register_forward_pre_hook(choose) if isinstance(head, nn.Module) else None
    try:
        logits: Tensor = module(**inputs).logits
    finally:
        if handle is not None:
            handle.remove()
    return logits[0] if reduced else logits.flatten(0, 1)[positions]


def attention_window(config: Any) -> int | None:
    """Tokens that every layer can look back on; None for all, 0 where a layer is no attention."""
    config = getattr(config, "text_config", None) or config
    kinds = set(getattr(config, "layer_types", None) or [])
    if kinds - {_FULL, _WINDOW}:
        return 0
    window = getattr(config, "sliding_window", None)
    if not window or (kinds and _WINDOW not in kinds):
        return None
    return int(window) if kinds or getattr(config, "use_sliding_window", True) else None


class TreeProbe:
    """Whether models take trees: asked once of each module, with made-up sequences.

    A tree and the same sequences one by one have to give the same logits, up to rounding; and a
    tree without its mask has to give others, or nothing is shown (the weights of a broken candidate
    are such a case) and the next candidate is asked. Weights decide nothing else: what is told is
    whether the module's code follows the mask.

    Where it matters that candidates are asked alike, whoever was asked before and in whichever
    module, `decide` on weights that all of them follow.
    """

    _CONTEXT = 7
    _BRANCHES = (3, 1, 4)

    def __init__(self) -> None:
        self._known: weakref.WeakKeyDictionary[nn.Module, bool] = weakref.WeakKeyDictionary()
        self._decided: bool | None = None

    def __call__(self, module: nn.Module) -> bool:
        """Whether trees may be asked of the module."""
        if self._decided is not None:
            return self._decided
        if module not in self._known:
            answer = self._ask(module)
            if answer is None:
                return False
            self._known[module] = answer
        return self._known[module]

    def decide(self, module: nn.Module) -> None:
        """Ask the module now, for all others too; where nothing is shown, they get no trees."""
        self._decided = self._ask(module) is True

    def _ask(self, module: nn.Module) -> bool | None:
        accepted = inspect.signature(module.forward).parameters
        if not {"position_ids", "attention_mask"} <= set(accepted):
            return False
        try:
            told, apart, unmasked = self._logits(module)
        except torch.OutOfMemoryError:
            raise
        except Exception:  # a model's code may fail in any way on a mask that it does not know
            return False
        if not bool(torch.isfinite(told).all() & torch.isfinite(apart).all()):
            return None
        half = _dtype_of(module) != torch.float32
        error, power = (told - apart).abs().mean(), (unmasked - apart).abs().mean()
        if not power > apart.abs().mean() * (1e-2 if half else 1e-4):
            # Nothing is shown, unless what should be equal is not.
            return None if error <= power else False
        return bool(error < power * (0.2 if half else 1e-2))

    def _logits(self, module: nn.Module) -> tuple[Tensor, Tensor, Tensor]:
        """Of a tree, of its sequences one by one, and of the tree without its mask."""
        config: Any = module.config
        columns = int((getattr(config, "text_config", None) or config).vocab_size)
        trees = []
        for start, context in ((1, self._CONTEXT), (2, self._CONTEXT - 3)):
            made = [(start + 7919 * i) % columns for i in range(60)]
            heads = tuple(made[:context])
            trees.append(
                TokenTree.of(
                    [
                        heads + tuple(made[10 * (b + 1) :][:length])
                        for b, length in enumerate(self._BRANCHES)
                    ]
                )
            )
        rows = TreeRows.of(trees)
        width = rows.input_ids.shape[1]
        apart, positions = [], []
        with torch.inference_mode():
            for row, tree in enumerate(trees):
                for sequence, path in tree.paths.items():
                    alone = torch.tensor([sequence], device=device_of(module))
                    apart.append(module(alone).logits[0].float())
                    positions += [row * width + node for node in path]
            index = torch.tensor(positions, device=device_of(module))
            told, unmasked = (
                logits_at(module, rows.inputs(module, masked=masked), index).float()
                for masked in (True, False)
            )
        return told, torch.cat(apart), unmasked


def _dtype_of(module: nn.Module) -> torch.dtype:
    parameter = next(module.parameters(), None)
    return torch.float32 if parameter is None else parameter.dtype
