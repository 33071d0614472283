"""Which axes of a network's tensors count the same hidden units, and may be permuted together.

A *space* is one order of hidden units: the residual stream, the hidden units of one feed-forward
layer, the rows of one layer's queries. Every axis of every tensor has the spaces that lie end to
end along it, or none, where it cannot be permuted (tokens, classes, inputs). Permuting all axes of
a space alike changes nothing that the network computes, as long as the spaces of one group go
together as the group says.

Here are plain networks: those whose axes are given, and chains of linear layers. Transformers are
in transformer_axes.py.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from evomerge.checkpoints.open import Checkpoint
from evomerge.errors import ModelError, Problem, nearest

Spaces = tuple[str, ...]  # that lie end to end along an axis; () is fixed


@dataclass(frozen=True)
class Units:
    """Units that may stand in any order: one space."""

    space: str
    size: int

    @property
    def sizes(self) -> dict[str, int]:
        """Each space's number of entries."""
        return {self.space: self.size}


@dataclass(frozen=True)
class Heads:
    """One layer's attention: spaces that are permuted as whole heads, and in part inside them.

    Query head g * num_queries + a reads the keys and values of key head g. Key heads may be
    permuted with all that reads them, the query heads of one key head among each other, and inside
    a key head its values with the columns of the output that read them. Where queries and keys are
    not rotated by position, their inner dimensions may be permuted as well, alike for all of a key
    head; a rotary pair has its frequency, and stays.
    """

    query: str
    key: str
    value: str
    output: str
    num_keys: int
    num_queries: int  # of each key head
    width: int  # of a head
    rotary: bool

    @property
    def sizes(self) -> dict[str, int]:
        """Each space's number of entries."""
        keys = self.num_keys * self.width
        wide = keys * self.num_queries
        return {self.query: wide, self.key: keys, self.value: keys, self.output: wide}


Group = Units | Heads


@dataclass(frozen=True)
class Axes:
    """A network's axes: for every tensor, and each of its dimensions, the spaces along it."""

    tensors: Mapping[str, tuple[Spaces, ...]]
    groups: tuple[Group, ...]

    @property
    def sizes(self) -> dict[str, int]:
        """Each space's number of entries."""
        return {space: size for group in self.groups for space, size in group.sizes.items()}

    def problems(self, checkpoint: Checkpoint) -> list[Problem]:
        """Axes whose spaces are not as long as the model's."""
        sizes, found = self.sizes, []
        for name, axes in self.tensors.items():
            shape = checkpoint.shape(name)
            told = [sum(sizes[s] for s in spaces) for spaces in axes]
            wrong = len(axes) != len(shape) or any(
                spaces and size != length
                for spaces, size, length in zip(axes, told, shape, strict=False)
            )
            if wrong:
                what = f"has shape {list(shape)}, and its axes are {_listed(axes, told)}"
                found.append(Problem(f"{checkpoint.where}: tensor {name!r}", what))
        return found


def _listed(axes: Sequence[Spaces], sizes: Sequence[int]) -> str:
    parts = [
        f"{'+'.join(spaces)} ({size})" if spaces else "fixed"
        for spaces, size in zip(axes, sizes, strict=True)
    ]
    return ", ".join(parts)


def given_axes(checkpoint: Checkpoint, given: Mapping[str, Sequence[str | None]]) -> Axes:
    """The axes that a user names: for each tensor a name for each of its axes, or null.

    Tensors that are not named stay as they are.

    Raises:
        ModelError: a tensor that there is not, or axes that do not fit.
    """
    problems = []
    sizes: dict[str, int] = {}
    for name, axes in given.items():
        where = f"axes.{name}"
        if name not in checkpoint.names:
            hint = nearest(name, checkpoint.names)
            problems.append(Problem(where, f"{checkpoint.name} has no such tensor", hint))
            continue
        shape = checkpoint.shape(name)
        if len(axes) != len(shape):
            what = f"expected {len(shape)} names (or null), for shape {list(shape)}, got {axes}"
            problems.append(Problem(where, what))
            continue
        for axis, length in zip(axes, shape, strict=True):
            if axis is not None and sizes.setdefault(axis, length) != length:
                what = f"{axis!r} is {length} long here, and {sizes[axis]} elsewhere"
                problems.append(Problem(where, what))
    if problems:
        raise ModelError(problems)
    tensors = {
        name: tuple(() if axis is None else (axis,) for axis in axes)
        for name, axes in given.items()
    }
    return Axes(tensors, tuple(Units(space, size) for space, size in sizes.items()))


_COEFFICIENTS = re.compile(r"coef", re.IGNORECASE)  # scikit-learn's are (in, out)


def chain_axes(checkpoint: Checkpoint) -> Axes:
    """The axes of a plain network: linear layers one after another, by their names' numbers.

    Weights are (out, in), as torch's, or (in, out) where they are called `coefs`, as scikit-learn's
    are. Vectors between two of them (biases, norms) belong to the units of the layer before.

    Raises:
        ModelError: naming what is no link of such a chain.
    """
    names = sorted(checkpoint.names, key=_natural)
    links = [name for name in names if len(checkpoint.shape(name)) == 2]
    hint = "say which axes belong together: `match: {model: ..., axes: {...}}`"
    if len(links) < 2:
        what = f"a chain of linear layers has two matrices or more, found {len(links)}"
        raise ModelError(Problem(checkpoint.where, what, hint))
    turned = all(_COEFFICIENTS.search(name) for name in links)
    ends = [checkpoint.shape(n) if turned else checkpoint.shape(n)[::-1] for n in links]  # in, out
    problems = [
        Problem(
            f"{checkpoint.where}: tensor {later!r}",
            f"takes {after[0]} inputs, and {earlier!r} before it has {before[1]} outputs",
            hint,
        )
        for (earlier, before), (later, after) in pairwise(zip(links, ends, strict=True))
        if before[1] != after[0]
    ]
    spaces: list[Spaces] = [(), *((f"hidden {i}",) for i in range(len(links) - 1)), ()]
    tensors: dict[str, tuple[Spaces, ...]] = {}
    for i, name in enumerate(links):
        tensors[name] = (spaces[i], spaces[i + 1]) if turned else (spaces[i + 1], spaces[i])
    layers = _layer_of_vectors(checkpoint, names, links, ends)
    for name in names:
        shape = checkpoint.shape(name)
        if name in tensors or math.prod(shape) == 1:
            continue
        layer = layers.get(name)
        if len(shape) != 1 or layer is None:
            what = f"of shape {list(shape)} fits no place between linear layers"
            problems.append(Problem(f"{checkpoint.where}: tensor {name!r}", what, hint))
            continue
        tensors[name] = (spaces[layer + 1],)
    if problems:
        raise ModelError(problems)
    units = [Units(spaces[i + 1][0], ends[i][1]) for i in range(len(links) - 1)]
    return Axes(tensors, tuple(units))


def _layer_of_vectors(
    checkpoint: Checkpoint,
    names: Sequence[str],
    links: Sequence[str],
    ends: Sequence[tuple[int, ...]],
) -> dict[str, int]:
    """The linear layer whose outputs a vector stands beside: of its name, else the last before.

    `intercepts.1` is numbered as `coefs.1`; a norm's number is between those of two layers.
    """
    by_stem = {name.rpartition(".")[0]: i for i, name in enumerate(links) if "." in name}
    by_number = {_numbers(name): i for i, name in enumerate(links)}
    found = {}
    for name in names:
        layer = by_stem.get(name.rpartition(".")[0])
        if layer is None:
            layer = by_number.get(_numbers(name)) if _numbers(name) else None
        if layer is None:
            before = [i for i, link in enumerate(links) if _numbers(link) < _numbers(name)]
            layer = before[-1] if before else None
        if layer is not None and checkpoint.shape(name) == (ends[layer][1],):
            found[name] = layer
    return found


def _natural(name: str) -> list[tuple[int, int, str]]:
    """Names in the order in which people count them."""
    parts = re.split(r"(\d+)", name)
    return [(1, int(part), "") if part.isdigit() else (0, 0, part) for part in parts]


def _numbers(name: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", name))
