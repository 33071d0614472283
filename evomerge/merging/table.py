"""All operators by name: the one list behind look-up, help, validation and tests."""

from __future__ import annotations

from evomerge.merging.linear import LINEAR
from evomerge.merging.operator import Operator
from evomerge.merging.slerp import SLERP
from evomerge.merging.task_vectors import TASK_VECTORS

OPERATORS: dict[str, Operator] = {
    operator.name: operator for operator in (LINEAR, SLERP, *TASK_VECTORS)
}
