"""How models are related: fine-tunes of one base are near it, and strangers are not.

A merge of unrelated models is finite and useless, so it has to be said before. The figures are
estimated from stretches of the large tensors, at places that depend on the tensors' names alone: a
small model is read whole, and a model of any size in about a second.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np
import torch
from numpy.typing import NDArray

from evomerge.checkpoints.open import Checkpoint

SAMPLE = 2_000_000  # entries of each model; smaller models are read whole
PIECE = 2**18  # entries of all models that are compared at a time: their number costs no memory
STRETCH = 4_096  # entries that are read in one piece
MADE_TENSORS = 8  # of those that have to be computed whole, as an adapter's are

UNRELATED = 0.5  # cosine with the base; fine-tunes are above .99, strangers near 0
LARGE = 1.0  # task vector by base; fine-tunes are below .1
LOST = 0.5  # share of changed entries below which the output's dtype is told of


@dataclass(frozen=True)
class Relation:
    """An expert against the base.

    Attributes:
        cosine: of the raw weights.
        relative_norm: the task vector's norm by the base's.
        survives: share of the entries that the expert changes which are still changed in the
            output's dtype, when the task vector is added with weight 1 / number of experts.
    """

    cosine: float
    relative_norm: float
    survives: float


@dataclass(frozen=True)
class Relatedness:
    """How the models of a merge are related.

    Attributes:
        relations: by expert.
        raw_cosines, delta_cosines: by pair of experts, of their weights and of their task vectors.
        delta_gram: inner products of the task vectors, (experts, experts), as `relations` has them.
        num_entries: of each model that were looked at.
        dtype: of the output.
        weight: that `survives` is computed for.
    """

    relations: Mapping[str, Relation]
    raw_cosines: Mapping[tuple[str, str], float]
    delta_cosines: Mapping[tuple[str, str], float]
    delta_gram: NDArray[np.float64] = field(compare=False)
    num_entries: int
    dtype: torch.dtype
    weight: float

    @property
    def mean_delta_cosine(self) -> float | None:
        """The mean over pairs of experts; None where there is none."""
        return _mean(self.delta_cosines.values())

    def mean_delta_cosine_of(self, name: str) -> float | None:
        """The mean over the pairs of an expert; who equals the base has no direction."""
        return _mean(cosine for pair, cosine in self.delta_cosines.items() if name in pair)

    def warnings(self) -> list[str]:
        """What looks like a mistake, with figures."""
        found = [text for name in self.relations for text in self._of_one(name)]
        mean = self.mean_delta_cosine
        strangers = [name for name, r in self.relations.items() if r.cosine < UNRELATED]
        if strangers and mean is not None:
            norms = ", ".join(f"{n} {r.relative_norm:.3g}" for n, r in self.relations.items())
            found.append(
                f"mean cosine between task vectors {mean:.3f}; their norms by the base's: {norms}"
            )
        kin = [pair for pair in combinations(strangers, 2) if self.raw_cosines[pair] > UNRELATED]
        if kin:
            one, other = kin[0]
            cosine = self.raw_cosines[kin[0]]
            found.append(
                f"{one} and {other} look related to each other (cosine {cosine:.3f}): "
                "is the base the right one?"
            )
        return found

    def _of_one(self, name: str) -> Iterator[str]:
        relation = self.relations[name]
        if relation.relative_norm == 0:
            yield f"{name}: is the base in all {self.num_entries:,} entries that were looked at"
            return
        figures = f"cosine {relation.cosine:.3f}, task vector {relation.relative_norm:.3g} of it"
        if relation.cosine < UNRELATED:
            yield f"{name}: looks unrelated to the base ({figures}): a merge is not likely to work"
        elif relation.relative_norm >= LARGE:
            yield f"{name}: its task vector is as large as the base's weights ({figures})"
        if relation.survives < LOST:
            dtype = str(self.dtype).removeprefix("torch.")
            yield (
                f"{name}: {relation.survives:.0%} of the entries that it changes survive in "
                f"{dtype} at weight {self.weight:.2g}; `dtype: float32` keeps them"
            )


def _mean(cosines: Iterable[float]) -> float | None:
    """Of those that there are."""
    known = [cosine for cosine in cosines if not math.isnan(cosine)]
    return sum(known) / len(known) if known else None


def relate(
    checkpoints: Mapping[str, Checkpoint],
    base: str,
    dtype: torch.dtype | str | None = None,
    *,
    sample: int = SAMPLE,
) -> Relatedness:
    """Compare every model with the base and with the others.

    Args:
        checkpoints: by name, known to fit together (see `preflight`).
        base: one of the names.
        dtype: of the merged model; None keeps each tensor's own.
        sample: about how many entries of each model are read.
    """
    chosen: torch.dtype | None = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    experts = [name for name in checkpoints if name != base]
    weight = 1 / max(1, len(experts))
    gram = np.zeros((1 + len(experts), 1 + len(experts)))  # of the base, then of the task vectors
    changed, kept = np.zeros(len(experts)), np.zeros(len(experts))
    num_entries = 0
    models = [checkpoints[base], *(checkpoints[name] for name in experts)]
    for name, share, places in _plan(models, sample):
        output = models[0].dtype(name) if chosen is None else chosen
        for rows in _rows(models, name, places):
            num_entries += rows.shape[1]
            origin, taus = rows[0].clone(), rows[1:]
            taus -= origin
            doubles = rows.double()
            gram += share * (doubles @ doubles.T).numpy()
            differ = taus != 0
            still = (origin + weight * taus).to(output) != origin.to(output)
            changed += share * differ.sum(1).numpy()
            kept += share * (differ & still).sum(1).numpy()
    return _summed(experts, gram, changed, kept, num_entries, chosen or _main_dtype(models[0]))


def _plan(
    models: list[Checkpoint], sample: int
) -> Iterator[tuple[str, float, NDArray[np.int64] | None]]:
    """Tensors to read, what an entry of each stands for, and the stretches' starts; None for all.

    Vectors are left out, where there are matrices: a norm's gains are near 1 in every model.
    """
    origin = models[0]
    everywhere = set(origin.names).intersection(*(model.names for model in models[1:]))
    common = [
        name for name in origin.names if name in everywhere and origin.dtype(name).is_floating_point
    ]
    names = [name for name in common if len(origin.shape(name)) > 1] or common
    sizes = {name: math.prod(origin.shape(name)) for name in names}
    made = [name for name in names if any(model.is_made(name) for model in models)]
    total = sum(sizes.values())
    chosen = made[:: -(-len(made) // MADE_TENSORS) or 1] if total > sample else made
    made_share = sum(sizes[n] for n in made) / max(1, sum(sizes[n] for n in chosen))
    skipped = set(made) - set(chosen)
    for name in names:
        if name in skipped or not sizes[name]:
            continue
        outer = made_share if name in chosen else 1.0
        wanted = math.ceil(sizes[name] * sample / max(total, 1) / STRETCH)
        if total <= sample or wanted * STRETCH >= sizes[name]:
            yield name, outer, None
            continue
        key = hashlib.sha256(f"relatedness\0{name}".encode()).digest()
        generator = np.random.default_rng(int.from_bytes(key[:8], "little"))
        places = np.sort(generator.integers(0, sizes[name] - STRETCH, wanted))
        yield name, outer * sizes[name] / (wanted * STRETCH), places


def _rows(
    models: list[Checkpoint], name: str, places: NDArray[np.int64] | None
) -> Iterator[torch.Tensor]:
    """The entries of a tensor as float32, (models, entries), in pieces of about `PIECE`."""
    each = max(1, PIECE // len(models))
    if places is None:
        whole = [model.tensor(name).reshape(-1) for model in models]
        for start in range(0, whole[0].numel(), each):
            yield torch.stack([entries[start : start + each].float() for entries in whole])
        return
    stretches = max(1, each // STRETCH)
    for start in range(0, len(places), stretches):
        some = places[start : start + stretches].tolist()
        yield torch.stack([model.stretches(name, some, STRETCH).float() for model in models])


def _summed(
    experts: list[str],
    gram: NDArray[np.float64],
    changed: NDArray[np.float64],
    kept: NDArray[np.float64],
    num_entries: int,
    dtype: torch.dtype,
) -> Relatedness:
    """The figures from the inner products of the base and the task vectors."""
    base = gram[0, 0]
    # W_k = W_0 + tau_k: inner products of raw weights are sums of those of base and task vectors.
    raw = gram[1:, 1:] + gram[0, 1:, None] + gram[0, None, 1:] + base
    with_base = gram[0, 1:] + base
    relations, raw_cosines, delta_cosines = {}, {}, {}
    for k, name in enumerate(experts):
        relations[name] = Relation(
            cosine=_ratio(with_base[k], math.sqrt(base * max(raw[k, k], 0.0))),
            relative_norm=_ratio(math.sqrt(gram[k + 1, k + 1]), math.sqrt(base)),
            survives=_ratio(kept[k], changed[k]) if changed[k] else 1.0,
        )
    for i, j in combinations(range(len(experts)), 2):
        pair = experts[i], experts[j]
        raw_cosines[pair] = _ratio(raw[i, j], math.sqrt(max(raw[i, i] * raw[j, j], 0.0)))
        norms = math.sqrt(gram[i + 1, i + 1] * gram[j + 1, j + 1])
        delta_cosines[pair] = _ratio(gram[i + 1, j + 1], norms)
    weight = 1 / max(1, len(experts))
    return Relatedness(
        relations, raw_cosines, delta_cosines, gram[1:, 1:], num_entries, dtype, weight
    )


def _ratio(above: float, below: float) -> float:
    """NaN where there is nothing to divide by: a model of zeros has no direction."""
    return float(above / below) if below > 0 else math.nan


def _main_dtype(checkpoint: Checkpoint) -> torch.dtype:
    """The floating dtype of most entries."""
    counts: dict[torch.dtype, int] = {}
    for name in checkpoint.names:
        if (dtype := checkpoint.dtype(name)).is_floating_point:
            counts[dtype] = counts.get(dtype, 0) + math.prod(checkpoint.shape(name))
    return max(counts, key=lambda dtype: counts[dtype], default=torch.float32)
