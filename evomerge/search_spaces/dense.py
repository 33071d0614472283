"""Descendants by split SLERP with noise, as parameters in memory.

For evolving from scratch: each child of M2N2 (https://arxiv.org/abs/2508.16204) then gets noise,
which no table of seeds can say (see lineage.py).
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from evomerge.search_spaces.lineage import Angle, inner, slerp_shares

_CHUNK = 2**16  # entries that are float64 at a time


class Dense:
    """The flattened float32 parameters of those members of a population that are alive.

    angle: as in `lineage.cross`.
    """

    def __init__(self, angle: Angle = "whole") -> None:
        self._angle = angle
        self._vectors: dict[Hashable, NDArray[np.float32]] = {}
        self._squares: dict[Hashable, float] = {}  # squared norms, of those who had children

    def __len__(self) -> int:
        return len(self._vectors)

    def seed(self, member: Hashable, vector: ArrayLike) -> None:
        """Add a member that has no parents, shape (total,)."""
        self._squares.pop(member, None)
        self._vectors[member] = np.array(vector, np.float32).reshape(-1)

    def birth(
        self,
        member: Hashable,
        first: Hashable,
        second: Hashable,
        mix: float,
        split: int,
        noise_std: float = 0.0,
        noise_seed: int | Sequence[int] | np.random.Generator = 0,
    ) -> None:
        """Add the child of two members, as `lineage.cross`, with noise N(0, noise_std^2).

        noise_seed: the child's own, so that its noise depends on nothing that was drawn before; or
            a generator that is.

        Raises:
            KeyError: a parent that is not alive.
        """
        if first == second:
            child = self._vectors[first].copy()
        else:
            child = self._crossed(first, second, mix, split)
        if noise_std:
            generator = np.random.default_rng(noise_seed)
            child += np.float32(noise_std) * generator.standard_normal(len(child), np.float32)
        self._squares.pop(member, None)
        self._vectors[member] = child

    def drop(self, member: Hashable) -> None:
        """Forget a member.

        Raises:
            KeyError: it is not alive.
        """
        del self._vectors[member]
        self._squares.pop(member, None)

    def vector(self, member: Hashable) -> NDArray[np.float32]:
        """A member's parameters, shape (total,), which must not be changed.

        Raises:
            KeyError: it is not alive.
        """
        return self._vectors[member]

    def _crossed(
        self, first: Hashable, second: Hashable, mix: float, split: int
    ) -> NDArray[np.float32]:
        one, other = self._vectors[first], self._vectors[second]
        child = np.empty_like(one)
        whole = self._angle == "whole"
        if whole:
            products = self._square(first), _product(one, other), self._square(second)
        for part, share in ((slice(0, split), mix), (slice(split, len(one)), 1 - mix)):
            if not whole:
                a, b = one[part], other[part]
                products = _product(a, a), _product(a, b), _product(b, b)
            for_one, for_other = slerp_shares(share, *products)
            np.multiply(one[part], np.float32(for_one), out=child[part])
            child[part] += np.float32(for_other) * other[part]
        return child

    def _square(self, member: Hashable) -> float:
        if member not in self._squares:
            self._squares[member] = _product(self._vectors[member], self._vectors[member])
        return self._squares[member]


def _product(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    """The inner product of two vectors, in float64."""
    return sum(
        inner(
            one[start : start + _CHUNK].astype(np.float64),
            other[start : start + _CHUNK].astype(np.float64),
        )
        for start in range(0, len(one), _CHUNK)
    )
