"""What an operator is: a declaration that can be read without torch, and two functions on tensors.

`prepare` does all that does not depend on the free parameters, once; `apply` is what a candidate
costs. Both see a *block*: one large tensor, or the small tensors of one layer and component laid
end to end, so that a small model is not merged in hundreds of tiny steps. What is defined per
tensor (an angle, a threshold, a norm) is computed per *segment*, so results never depend on the
blocks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

from evomerge.records import Parameter

if TYPE_CHECKING:
    from numpy.typing import DTypeLike, NDArray
    from torch import Tensor

    from evomerge.merging.order import Magnitudes, Pieces

Value = float | bool | str | tuple[float, ...]  # a tuple has one value for each source
Values = Mapping[str, Value]

Kept = TypeVar("Kept")

GPU_CHUNK = 2**25  # float32 scratch of 128 MB keeps a GPU busy
CHUNK = 2**18  # entries: float32 scratch for some experts stays inside a core's cache


class Around(Protocol):
    """What an operator can know beyond the entries of its block, and where it can keep things."""

    def room(self, numel: int, dtype: DTypeLike) -> NDArray[Any]:
        """An array for prepared data, in memory or in a file; as `numpy.empty`."""
        ...

    def order(self, pieces: Pieces) -> Magnitudes:
        """The order of the magnitudes of what comes in pieces."""
        ...

    def kept(self, name: str, make: Callable[[], Kept], source: str | None = None) -> Kept:
        """What `make` returns, or returned before: shared by all operators, whatever their values.

        It has `nbytes`, and may have `spill` (see cache.py). Its name says all that it depends on,
        beside the block's tensors of the base and of one source; of all sources, if none is named.
        """
        ...

    def kept_for_model(self, name: str, make: Callable[[], Kept]) -> Kept:
        """The same for what is computed from the whole models; it is never thrown away."""
        ...

    def factors(self, source: str) -> tuple[tuple[Tensor, Tensor, float] | None, ...]:
        """A source's low-rank changes of the block's tensors, one for each of them.

        A (r, columns), B (rows, r), in float32 on the CPU, and a factor: the tensor as it is stored
        changes by factor * B @ A. None where the source has no such change.

        Raises:
            ConfigurationError: the source is no adapter.
            CandidateError: it gives another layer than the base.
        """
        ...

    def whole_model(self, source: str) -> Magnitudes:
        """The order of the magnitudes of a source's task vector over the whole model.

        Raises:
            CandidateError: layers are rearranged, so that there is no such task vector.
        """
        ...

    def task_vectors(self) -> Iterator[Tensor]:
        """The sources' task vectors over the whole model, in float32 pieces (sources, entries).

        Raises:
            CandidateError: layers are rearranged, so that there are no such task vectors.
        """
        ...

    def statistics(self, kind: str, source: str | None = None) -> tuple[Tensor | None, ...]:
        """Of a source, or of the base: one for each tensor of the block, None where there is none.

        kind: see `evomerge.merging.calibration.statistics`. They may be views of a mapped file.

        Raises:
            ConfigurationError: there are no calibration texts.
        """
        ...

    def in_turn(self, alpha: float) -> tuple[Tensor, ...]:
        """The block's tensors, float32, of the sources' RegMean++ over the whole model.

        Raises:
            ConfigurationError: there are no calibration texts, or the models cannot be run.
        """
        ...

    def statistics_norm(self, kind: str, source: str) -> float:
        """The L2 norm of all of a source's statistics of a kind.

        Raises:
            ConfigurationError: there are no calibration texts.
        """
        ...

    def blocks(self) -> Iterator[Block]:
        """The whole models, one block after another, as they are when each is merged by itself.

        Raises:
            CandidateError: layers are rearranged, so that there are no such task vectors.
        """
        ...

    @property
    def components(self) -> tuple[str, ...]:
        """Of each tensor in the block: attention, mlp, norm, embedding, head or other."""
        ...


@dataclass(frozen=True)
class Block:
    """Tensors laid end to end, as an operator reads them.

    names, shapes: of the tensors; base: shape (numel,), absent for operators that need none;
    sources: one tensor of shape (numel,) for each of source_names, in their own dtype.
    depths: of each tensor, its layer's place from 0 (first) to 1 (last); None outside the layers.
    views: addresses of those of base and sources that are views of a model's own memory or file.
    around: what can be known beyond these entries.
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    base: Tensor | None
    sources: tuple[Tensor, ...]
    source_names: tuple[str, ...]
    mask_seed: int
    depths: tuple[float | None, ...]
    views: frozenset[int]
    around: Around

    @property
    def segments(self) -> tuple[slice, ...]:
        """Where each tensor lies."""
        stops = [0, *accumulate(math.prod(shape) for shape in self.shapes)]
        return tuple(slice(start, stop) for start, stop in pairwise(stops))

    @property
    def numel(self) -> int:
        """Entries of all tensors together."""
        return sum(math.prod(shape) for shape in self.shapes)

    def held_bytes(self, *tensors: Tensor | None) -> int:
        """What keeping tensors costs: nothing where one is a view of a model, as `base` may be."""
        kept = (tensor for tensor in tensors if tensor is not None)
        return sum(tensor.nbytes for tensor in kept if tensor.data_ptr() not in self.views)


def small_as_float(tensor: Tensor) -> Tensor:
    """A float32 copy of a tensor of at most one chunk; a larger one as it is."""
    return tensor.float() if tensor.numel() <= CHUNK else tensor


def chunks(numel: int, width: int = 1, *, like: Tensor | None = None) -> Iterator[slice]:
    """Slices of at most CHUNK entries; of rows, if each entry is one of `width`.

    like: a tensor that is read; on a GPU slices are longer, for each costs some launches.
    """
    most = CHUNK if like is None or like.device.type == "cpu" else GPU_CHUNK
    step = max(1, most // max(1, width))
    for start in range(0, numel, step):
        yield slice(start, min(start + step, numel))


def parts_of(segment: slice, width: int = 1, *, like: Tensor | None = None) -> Iterator[slice]:
    """A tensor's place in its block, in slices of at most CHUNK entries.

    width: how many models are looked at together; CHUNK is what they have in all. like: as above.
    """
    for part in chunks(segment.stop - segment.start, width, like=like):
        yield slice(segment.start + part.start, segment.start + part.stop)


Whose = Literal["base", "sources"]
Collects = Callable[[Values], tuple[tuple[str, Whose], ...]]


def collects_nothing(values: Values) -> tuple[tuple[str, Whose], ...]:
    """For what is computed from the weights alone."""
    del values
    return ()


@dataclass(frozen=True, kw_only=True)
class Declared:
    """What people are told of an operator or a post-step.

    needs: what beside the weights it is computed from.
    collects(values): which kinds of statistics of whom it will ask for, so that they can be
        collected beforehand.
    place: what the result depends on besides: nothing, a tensor's own name, its layer's depth.
    notes: for the reference: the formula, and where others compute something else.
    """

    name: str
    paper: str
    summary: str
    parameters: tuple[Parameter, ...]
    needs: Literal["nothing", "activations", "gradients"] = "nothing"
    collects: Collects = collects_nothing
    place: Literal["nothing", "name", "depth", "both"] = "nothing"
    notes: str = ""

    def parameter(self, name: str) -> Parameter:
        """The declaration of a parameter.

        Raises:
            KeyError: there is none of that name.
        """
        for parameter in self.parameters:
            if parameter.name == name:
                return parameter
        raise KeyError(name)


@dataclass(frozen=True, kw_only=True)
class Operator(Declared):
    """A way to merge tensors.

    whole: defined only where the whole model is merged alike, its layers in their places.
    prepare(block, values): what does not depend on parameters of the apply phase; it has `nbytes`.
    apply(prepared, values, out): the merged block into `out`, shape (numel,), any floating dtype;
    accumulated in float32 and cast once. It may return whether all that it wrote is finite; None
    says that nobody looked. It raises CandidateError where the parameters make no
    model.
    needs_adapters: whether the sources must be LoRA adapters of the base.
    """

    needs_base: bool
    min_sources: int
    max_sources: int | None
    prepare: Callable[[Block, Values], Any]
    apply: Callable[[Any, Values, Tensor], bool | None]
    whole: bool = False
    needs_adapters: bool = False


@dataclass(frozen=True, kw_only=True)
class PostStep(Declared):
    """What can be done to a merged block once more, whatever operator has merged it.

    prepare(block, values): as an operator's; what is views of the base need not be counted.
    apply(prepared, values, merged): changes merged, shape (numel,), float32, in place.
    """

    prepare: Callable[[Block, Values], Any]
    apply: Callable[[Any, Values, Tensor], None]
