"""LoRA-LEGO: the rank-one units of all adapters, clustered; one unit for each cluster is left."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from evomerge.merging.operator import Block, Operator, Values
from evomerge.merging.operators.lora import (
    Prepared,
    Units,
    Whole,
    read_factors,
    weights_of,
    write_product,
    write_whole,
)
from evomerge.records import Parameter

if TYPE_CHECKING:
    from torch import Tensor

RESTARTS = 10  # of the clustering; the tightest is kept
MAX_STEPS = 300

Gram = NDArray[np.float64]
Labels = NDArray[np.int64]


@dataclass
class Clustered:
    """Units and their clusters.

    units: the left factors without the common scale; gram: inner products of whole units (a; b),
    (units, units), float64; labels: each unit's cluster, (units,); scale: common to all units;
    rank: the mean of the adapters' ranks.
    """

    units: Units
    gram: Tensor
    labels: Tensor
    num_clusters: int
    scale: float
    rank: float

    @property
    def nbytes(self) -> int:
        """In memory."""
        return self.units.nbytes + self.gram.nbytes + self.labels.nbytes


def _prepare(block: Block, values: Values) -> Prepared:
    prepared = read_factors(block)
    wanted = cast("int", values["rank"])
    factors = [block.around.factors(name) for name in block.source_names]
    for number, part in enumerate(prepared.parts):
        if not isinstance(part, Units):
            continue
        found = [one[number] for one in factors]
        scales = [abs(f[2]) for f in found if f is not None]
        ranks = [len(f[0]) for f in found if f is not None]
        scale = sum(scales) / len(scales) or 1.0
        units = Units(part.left / scale, part.right, part.owners)
        # Units in the order of their sources' names: draws then hang on no other order.
        names = [block.source_names[int(k)] for k in part.owners]
        order = sorted(range(len(names)), key=lambda i: names[i])
        left, right = units.left.double(), units.right.double()
        gram = (left.t() @ left + right @ right.t()).cpu()
        count = wanted or max(ranks)
        generator = _generator(block.mask_seed, block.names[number])
        labels = np.empty(len(order), np.int64)
        labels[order] = clusters(gram.numpy()[np.ix_(order, order)], count, generator)
        import torch

        prepared.parts[number] = Clustered(
            units,
            gram.to(part.left.device),
            torch.from_numpy(labels).to(part.left.device),
            int(labels.max()) + 1,
            scale,
            sum(ranks) / len(ranks),
        )
    return prepared


def _generator(mask_seed: int, tensor: str) -> np.random.Generator:
    key = hashlib.sha256(f"lora_lego\0{mask_seed}\0{tensor}".encode()).digest()
    return np.random.default_rng(int.from_bytes(key[:8], "little"))


def clusters(gram: Gram, count: int, generator: np.random.Generator) -> Labels:
    """k-means of points that are known by their inner products, shape (points, points).

    Lloyd's steps from k-means++ beginnings (Arthur & Vassilvitskii 2007), the tightest of some.

    Returns:
        Each point's cluster, numbered without gaps; fewer than `count` where points coincide.
    """
    best, least = np.zeros(len(gram), np.int64), np.inf
    for _ in range(RESTARTS):
        labels = _lloyd(gram, _beginnings(gram, count, generator))
        own = np.eye(labels.max() + 1)[labels]
        spread = float(_distances(gram, own)[np.arange(len(gram)), labels].sum())
        if spread < least - 1e-12 * float(np.trace(gram)):
            best, least = labels, spread
    return best


def _beginnings(gram: Gram, count: int, generator: np.random.Generator) -> Labels:
    """Points to begin with: each new one with a probability as its squared distance to them."""
    sizes = np.diag(gram)
    chosen = [int(generator.integers(len(gram)))]
    nearest = np.full(len(gram), np.inf)
    while len(chosen) < count:
        last = chosen[-1]
        nearest = np.minimum(nearest, sizes - 2 * gram[last] + sizes[last]).clip(min=0)
        nearest[chosen] = 0
        # What is nothing beside the points themselves is rounding: the points coincide.
        weights = np.where(nearest > 1e-12 * sizes.max(), nearest, 0)
        if not weights.any():
            break
        chosen.append(int(generator.choice(len(gram), p=weights / weights.sum())))
    return np.array(chosen)


def _lloyd(gram: Gram, chosen: Labels) -> Labels:
    """Points to their nearest means, and means to their points, until nothing changes."""
    own = np.eye(len(gram))[:, chosen]
    labels = _distances(gram, own).argmin(1)
    for _ in range(MAX_STEPS):
        labels = np.unique(labels, return_inverse=True)[1]  # a cluster without points is none
        after = _distances(gram, np.eye(labels.max() + 1)[labels]).argmin(1)
        if (after == labels).all():
            break
        labels = after
    return np.unique(labels, return_inverse=True)[1].reshape(-1)


def _distances(gram: Gram, own: NDArray[np.float64]) -> NDArray[np.float64]:
    """Squared distances of points to the means of clusters; own: (points, clusters), 0 or 1."""
    mean = own / own.sum(0)
    within = np.einsum("pc,pq,qc->c", mean, gram, mean, optimize=True)
    distances: NDArray[np.float64] = np.diag(gram)[:, None] - 2 * gram @ mean + within
    return distances


def _apply(prepared: Prepared, values: Values, out: Tensor) -> None:
    weights, factor = weights_of(values, prepared.base), cast("float", values["lambda"])
    mean = weights / weights.sum() if bool(weights.sum() > 0) else weights
    for part, segment, columns in zip(
        prepared.parts, prepared.segments, prepared.columns, strict=True
    ):
        base, result = prepared.base[segment], out[segment]
        if part is None:
            result.copy_(base)
        elif isinstance(part, Whole):
            write_whole(base, part.taus, mean * factor, result)
        else:
            mixing, scale = _means(part, weights, values)
            left = part.units.left @ mixing.t() * (scale * factor)
            write_product(base, left, mixing @ part.units.right, columns, result)


def _means(part: Clustered, weights: Tensor, values: Values) -> tuple[Any, float]:
    """What each cluster takes of each unit, (clusters, units), and the factor of the product."""
    import torch

    share = torch.zeros(part.num_clusters, len(part.labels), dtype=torch.float64)
    share = share.to(part.gram.device)
    units = torch.arange(len(part.labels), device=part.gram.device)
    share[part.labels, units] = weights[part.units.owners].double()
    total = share.sum(1, keepdim=True)
    mixing = torch.where(total > 0, share / total, 0.0)
    if values["keep_norms"]:
        usual = mixing @ part.gram.diagonal().clamp(min=0).sqrt()
        norms = (mixing @ part.gram * mixing).sum(1).clamp(min=0).sqrt()
        mixing = mixing * torch.where(norms > 1e-6 * usual, usual / norms, 1.0)[:, None]
    root = (part.rank / part.num_clusters) ** 0.5 if values["keep_variance"] else 1.0
    return mixing.float(), part.scale * root


LORA_LEGO = Operator(
    name="lora_lego",
    paper="Zhao et al. 2024, https://arxiv.org/abs/2409.16167 (rank-wise clustering)",
    summary="The rank-one units of LoRA adapters in clusters, each replaced by its mean",
    parameters=(
        Parameter(
            "weight",
            "real",
            1.0,
            "of a source's units in the means of their clusters",
            low=0,
            high=10,
            per_source=True,
        ),
        Parameter("lambda", "real", 1.0, "factor of the merged change", low=-10, high=10),
        Parameter(
            "rank",
            "integer",
            0,
            "clusters, the rank of the merge; 0 is the largest rank of the adapters",
            low=0,
            high=4096,
            phase="prepare",
        ),
        Parameter("keep_norms", "flag", True, "give each mean its units' mean norm"),
        Parameter("keep_variance", "flag", True, "times sqrt(r / k), r the adapters' mean rank"),
    ),
    needs_base=True,
    needs_adapters=True,
    min_sources=1,
    max_sources=None,
    place="name",
    prepare=_prepare,
    apply=_apply,
    notes="Every rank of an adapter is a unit: a row of A and a column of B end to end. The units "
    "of all adapters on a tensor are clustered by k-means (k-means++, the tightest of 10, draws "
    "from the mask seed and the tensor's name), and k means make the new factors. A mean is "
    "shorter than what it is the mean of, so each is stretched to its units' mean norm "
    "(`keep_norms`), and k units in place of r add up to sqrt(k / r) times the deviation, so the "
    "product is multiplied by sqrt(r / k) (`keep_variance`). Of adapters with differing alpha / r "
    "the columns of B are scaled to the mean of these first. A unit and its negative are the same "
    "product and far apart: nothing aligns their signs, as in the paper. Changed weights keep the "
    "clusters, another `rank` makes them anew. The sources are adapters. Tensors that no adapter "
    "changes are the base's; of what an adapter holds whole the weighted mean change is added.",
)
