"""All operators by name: the one list behind look-up, help, validation and tests."""

from __future__ import annotations

from evomerge.merging.arcee import ARCEE_FUSION
from evomerge.merging.linear import LINEAR
from evomerge.merging.lines import LINES
from evomerge.merging.magmax import MAGMAX
from evomerge.merging.model_stock import MODEL_STOCK
from evomerge.merging.nearswap import NEARSWAP
from evomerge.merging.nuslerp import NUSLERP
from evomerge.merging.operator import Operator
from evomerge.merging.passthrough import PASSTHROUGH
from evomerge.merging.ram import RAM, RAMPLUS_TL
from evomerge.merging.sce import SCE
from evomerge.merging.slerp import SLERP
from evomerge.merging.soup import UNIFORM_SOUP
from evomerge.merging.spherical import KARCHER, MULTISLERP
from evomerge.merging.task_vectors import TASK_VECTORS

OPERATORS: dict[str, Operator] = {
    operator.name: operator
    for operator in (
        LINEAR,
        UNIFORM_SOUP,
        PASSTHROUGH,
        SLERP,
        NUSLERP,
        MULTISLERP,
        KARCHER,
        *TASK_VECTORS,
        LINES,
        MAGMAX,
        SCE,
        MODEL_STOCK,
        RAM,
        RAMPLUS_TL,
        ARCEE_FUSION,
        NEARSWAP,
    )
}
