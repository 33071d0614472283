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

    def __len__(self) -> int:
        return len(self._vectors)

    def seed(self, member: Hashable, vector: ArrayLike) -> None:
        """Add a member that has no parents, shape (total,)."""
        self._vectors[member] = np.array(vector, np.float32).reshape(-1)

    def birth(
        self,
        member: Hashable,
        first: Hashable,
        second: Hashable,
        mix: float,
        split: int,
        noise_std: float = 0.0,
        noise_seed: int | Sequence[int] = 0,
    ) -> None:
        """Add the child of two members, as `lineage.cross`, with noise N(0, noise_std^2).

        noise_seed: the child's own, so that its noise depends on nothing that was drawn before.

        Raises:
            KeyError: a parent that is not alive.
        """
        one, other = self._vectors[first], self._vectors[second]
        child = np.empty_like(one)
        parts = ((slice(0, split), mix), (slice(split, len(one)), 1 - mix))
        whole = self._products(one, other) if self._angle == "whole" else None
        for part, share in parts:
            products = whole or self._products(one[part], other[part])
            for_one, for_other = slerp_shares(share, *products)
            for start in range(part.start, part.stop, _CHUNK):
                here = slice(start, min(start + _CHUNK, part.stop))
                child[here] = for_one * one[here].astype(np.float64) + for_other * other[here]
        if noise_std:
            generator = np.random.default_rng(noise_seed)
            child += np.float32(noise_std) * generator.standard_normal(len(child), np.float32)
        self._vectors[member] = child

    def drop(self, member: Hashable) -> None:
        """Forget a member.

        Raises:
            KeyError: it is not alive.
        """
        del self._vectors[member]

    def vector(self, member: Hashable) -> NDArray[np.float32]:
        """A member's parameters, shape (total,), which must not be changed.

        Raises:
            KeyError: it is not alive.
        """
        return self._vectors[member]

    @staticmethod
    def _products(
        one: NDArray[np.float32], other: NDArray[np.float32]
    ) -> tuple[float, float, float]:
        """The inner products of two vectors, in float64."""
        sums = np.zeros(3)
        for start in range(0, len(one), _CHUNK):
            a = one[start : start + _CHUNK].astype(np.float64)
            b = other[start : start + _CHUNK].astype(np.float64)
            sums += inner(a, a), inner(a, b), inner(b, b)
        return float(sums[0]), float(sums[1]), float(sums[2])
