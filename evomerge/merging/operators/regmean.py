"""RegMean: linear layers whose outputs are nearest to those of the experts, in closed form.

For a linear layer with inputs X_k in expert k and weight W_k (out, in), the merge minimises
sum_k |X_k W_k' - X_k W'|^2. With G_k = X_k' X_k / tokens, off-diagonals times alpha, it is
W' = (sum G_k)^-1 sum G_k W_k'.

It is solved for what is added to the mean M of the experts, in the eigenvectors of sum G_k scaled
to a unit diagonal, in which alpha changes eigenvalues alone: with s = diag(sum G_k)^-1/2,
s sum(G_k) s = V L V' and U = s V,

    W = M + [(alpha A + (1 - alpha) B) / (alpha L + 1 - alpha)] U'
    A = sum_k (W_k - M) G_k U,  B = sum_k (W_k - M) diag(G_k) U.

So a new alpha costs one product of matrices, and directions that no text has reached keep the mean.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

from evomerge.merging.operator import Block, Operator, Values, Whose
from evomerge.merging.order import memory_bytes
from evomerge.records import Parameter

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

REACHED = 1e-6  # eigenvalues below this share of the largest are float32's noise


_LARGE = ("mean", "vectors", "full", "diagonal", "values")  # a regression's tensors


def moved_tensor(
    tensor: Tensor, move: Callable[[NDArray[Any]], NDArray[Any]]
) -> tuple[Tensor, int]:
    """A tensor after `move` had it, and the bytes of memory that are free now."""
    import torch

    if tensor.device.type != "cpu":
        return tensor, 0
    array = tensor.numpy()
    moved = move(array)
    return torch.from_numpy(moved), memory_bytes(array) - memory_bytes(moved)


@dataclass
class Regression:
    """One matrix, prepared for any alpha; everything float32.

    mean: (out, in); vectors: U, (in, in); full, diagonal: A and B, (out, in); values: L, (in,).
    in_memory: bytes.
    """

    mean: Tensor
    vectors: Tensor
    full: Tensor
    diagonal: Tensor
    values: Tensor
    in_memory: int = field(init=False)

    def __post_init__(self) -> None:
        """Count what is held."""
        self.in_memory = sum(getattr(self, name).nbytes for name in _LARGE)

    def spill(self, move: Callable[[NDArray[Any]], NDArray[Any]]) -> None:
        """Bring large arrays to files."""
        for name in _LARGE:
            tensor, freed = moved_tensor(getattr(self, name), move)
            setattr(self, name, tensor)
            self.in_memory -= freed

    def merged(self, alpha: float) -> Tensor:
        """The merged matrix."""
        import torch

        total = self.values * alpha + (1 - alpha)
        inverse = torch.where(total > REACHED * total.max(), 1 / total, 0)
        inner = torch.lerp(self.diagonal, self.full, alpha).mul_(inverse)
        return torch.addmm(self.mean, inner, self.vectors.T)


def regression(weights: Sequence[Tensor], grams: Sequence[Tensor]) -> Regression:
    """Prepare a matrix; weights: each (out, in); grams: each (in, in). In float64."""
    import torch

    own_device = weights[0].device
    device = "cpu" if own_device.type == "mps" else own_device  # which has no float64
    matrices = [weight.to(device, torch.float64) for weight in weights]
    squares = [gram.to(device, torch.float64) for gram in grams]
    mean = torch.stack(matrices).mean(dim=0)
    total = torch.stack(squares).sum(dim=0)
    diagonal = total.diagonal()
    scale = torch.where(diagonal > 0, diagonal.rsqrt(), 0)
    values, vectors = torch.linalg.eigh(scale[:, None] * total * scale)
    vectors = scale[:, None] * vectors
    full, own = torch.zeros_like(mean), torch.zeros_like(mean)
    for matrix, gram in zip(matrices, squares, strict=True):
        move = matrix - mean
        full += move @ gram
        own += move * gram.diagonal()
    made = (mean, vectors, full @ vectors, own @ vectors, values.clamp(min=0))
    # One layout, in memory or in a file: products of matrices round by it.
    return Regression(*(tensor.float().to(own_device).contiguous() for tensor in made))


@dataclass
class _Mean:
    """A tensor that is averaged."""

    mean: Tensor
    in_memory: int = field(init=False)

    def __post_init__(self) -> None:
        self.in_memory = self.mean.nbytes

    def spill(self, move: Callable[[NDArray[Any]], NDArray[Any]]) -> None:
        self.mean, freed = moved_tensor(self.mean, move)
        self.in_memory -= freed


@dataclass
class _Prepared:
    parts: list[tuple[slice, Regression | _Mean]]  # of each tensor

    @property
    def nbytes(self) -> int:
        return sum(part.in_memory for _, part in self.parts)

    def spill(self, move: Callable[[NDArray[Any]], NDArray[Any]]) -> None:
        for _, part in self.parts:
            part.spill(move)


def _collects(values: Values) -> tuple[tuple[str, Whose], ...]:
    del values
    return (("gram", "sources"),)


def mean_of(tensors: Sequence[Tensor]) -> Tensor:
    """The mean, in float32."""
    import torch

    mean = torch.zeros_like(tensors[0], dtype=torch.float32)
    for tensor in tensors:
        mean += tensor.float()
    return mean.div_(len(tensors))


def _prepare(block: Block, values: Values) -> _Prepared:
    del values
    grams = [block.around.statistics("gram", name) for name in block.source_names]
    parts: list[tuple[slice, Regression | _Mean]] = []
    for i, (segment, shape) in enumerate(zip(block.segments, block.shapes, strict=True)):
        own = [of_source[i] for of_source in grams]
        flats = [source[segment] for source in block.sources]
        known = [gram for gram in own if gram is not None]
        if len(known) == len(own):
            parts.append((segment, regression([flat.view(shape) for flat in flats], known)))
        else:
            parts.append((segment, _Mean(mean_of(flats))))
    return _Prepared(parts)


def _apply(prepared: _Prepared, values: Values, out: Tensor) -> None:
    alpha = cast("float", values["alpha"])
    for segment, part in prepared.parts:
        found = part.mean if isinstance(part, _Mean) else part.merged(alpha).view(-1)
        out[segment].copy_(found)


ALPHA = "factor of what inputs have in common (off-diagonals)"

REGMEAN = Operator(
    name="regmean",
    paper="Jin et al. 2023, Dataless Knowledge Fusion by Merging Weights of Language Models, "
    "https://arxiv.org/abs/2212.09849",
    summary="Linear layers with outputs nearest to the experts' on calibration texts",
    parameters=(Parameter("alpha", "real", 0.9, ALPHA, low=0, high=1),),
    needs_base=False,
    min_sources=1,
    max_sources=None,
    needs="activations",
    collects=_collects,
    prepare=_prepare,
    apply=_apply,
    notes="W' = (sum G_k)^-1 sum G_k W_k' for weights W_k (out, in) of linear layers, where G_k is "
    "X'X / tokens of what goes into the layer in expert k, off-diagonals times alpha; the mean for "
    "all other tensors, also for a head that is tied to the embedding, and for layers that are not "
    "torch's Linear (GPT-2's Conv1D, a mixture's experts in one tensor). It is solved in float64 "
    "for the difference from the mean; directions that no text has reached (eigenvalues below 1e-6 "
    "of the largest; only alpha = 1 can have such) keep the mean, where the published code inverts "
    "a singular matrix. Without texts of its own for each expert (`of`), it differs from the mean "
    "only by what the experts do with the same texts.",
)
