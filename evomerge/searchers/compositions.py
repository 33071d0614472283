"""Merges as shares of experts: their genomes, and how related their task vectors are."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from evomerge.records import Facts, Genome

Array = NDArray[np.float64]


def read_experts(facts: Facts, num_genes: int) -> Array:
    """The experts' genomes in the cube, shape (experts, genes).

    Raises:
        ValueError: an expert has another length than the space, or a value that is not finite.
    """
    experts = np.asarray(facts.experts, dtype=np.float64)
    if experts.ndim != 2 or experts.shape[1] != num_genes or not np.isfinite(experts).all():
        raise ValueError(f"experts: expected {num_genes} finite values each, got {facts.experts!r}")
    return np.clip(experts, 0.0, 1.0)


def read_gram(facts: Facts) -> Array:
    """The task vectors' inner products, shape (experts, experts).

    Raises:
        ValueError: they are not those of the experts.
    """
    gram = np.asarray(facts.gram, dtype=np.float64)
    if gram.shape != (len(facts.experts),) * 2 or not np.isfinite(gram).all():
        raise ValueError(
            f"gram: expected {len(facts.experts)} x {len(facts.experts)} finite values, "
            f"got shape {gram.shape}"
        )
    return gram


def genome_of(experts: Array, weights: Array) -> Genome:
    """The genome that has so much of each expert; weights: (experts,), which sum to 1."""
    genome: Genome = np.clip(weights @ experts, 0.0, 1.0).tolist()
    return genome


def cosine(gram: Array, first: Array, second: Array) -> float:
    """The cosine between the task vectors of two compositions; 0 where one of them is nil."""
    lengths = float(first @ gram @ first) * float(second @ gram @ second)
    return float(first @ gram @ second) / math.sqrt(lengths) if lengths > 0 else 0.0
