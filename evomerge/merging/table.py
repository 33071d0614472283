"""All operators by name: the one list behind look-up, help, validation and tests."""

from __future__ import annotations

from evomerge.merging.operator import Operator
from evomerge.merging.operators.arcee import ARCEE_FUSION
from evomerge.merging.operators.linear import LINEAR
from evomerge.merging.operators.lines import LINES
from evomerge.merging.operators.magmax import MAGMAX
from evomerge.merging.operators.model_stock import MODEL_STOCK
from evomerge.merging.operators.nearswap import NEARSWAP
from evomerge.merging.operators.nuslerp import NUSLERP
from evomerge.merging.operators.passthrough import PASSTHROUGH
from evomerge.merging.operators.ram import RAM, RAMPLUS_TL
from evomerge.merging.operators.sce import SCE
from evomerge.merging.operators.slerp import SLERP
from evomerge.merging.operators.soup import UNIFORM_SOUP
from evomerge.merging.operators.spherical import KARCHER, MULTISLERP
from evomerge.merging.operators.task_vectors import TASK_VECTORS

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
