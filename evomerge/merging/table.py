"""All operators by name: the one list behind look-up, help, validation and tests.

An operator may be followed by post-steps: `ties | lines` merges as `ties` does and scales what came
out as `lines` says. Such a name is looked up as any other, and its post-steps' parameters carry
their names: `lines_alpha`. Installed packages may bring more (see installed.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, MutableMapping

from evomerge import installed
from evomerge.errors import nearest
from evomerge.merging.operator import Operator, PostStep
from evomerge.merging.operators.aim import AIM_STEP
from evomerge.merging.operators.arcee import ARCEE_FUSION
from evomerge.merging.operators.cabs import CABS
from evomerge.merging.operators.fisher import FISHER
from evomerge.merging.operators.isotropic import ISO_C, ISO_CTS
from evomerge.merging.operators.layer_swap import LAYER_SWAP
from evomerge.merging.operators.linear import LINEAR
from evomerge.merging.operators.lines import LINES, LINES_STEP
from evomerge.merging.operators.lora import LORA_CONCAT, LORA_SVD
from evomerge.merging.operators.lora_lego import LORA_LEGO
from evomerge.merging.operators.lore import LORE
from evomerge.merging.operators.magmax import MAGMAX
from evomerge.merging.operators.model_stock import MODEL_STOCK
from evomerge.merging.operators.mwa import MWA
from evomerge.merging.operators.nearswap import NEARSWAP
from evomerge.merging.operators.nuslerp import NUSLERP
from evomerge.merging.operators.opcm import OPCM
from evomerge.merging.operators.passthrough import PASSTHROUGH
from evomerge.merging.operators.pcb import PCB
from evomerge.merging.operators.ram import RAM, RAMPLUS_TL
from evomerge.merging.operators.regmean import REGMEAN
from evomerge.merging.operators.regmean_plusplus import REGMEAN_PLUSPLUS
from evomerge.merging.operators.sce import SCE
from evomerge.merging.operators.slerp import SLERP
from evomerge.merging.operators.soup import UNIFORM_SOUP
from evomerge.merging.operators.spherical import KARCHER, MULTISLERP
from evomerge.merging.operators.star import STAR
from evomerge.merging.operators.svd_task_arithmetic import SVD_TASK_ARITHMETIC
from evomerge.merging.operators.tall_mask import CONSENSUS_TA, TALL_MASK
from evomerge.merging.operators.task_singular_vectors import TSV_M
from evomerge.merging.operators.task_vectors import TASK_VECTORS
from evomerge.merging.operators.widen import WIDEN
from evomerge.merging.post_steps import followed
from evomerge.recipe import PIPE

_PLAIN: tuple[Operator, ...] = (
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
    FISHER,
    REGMEAN,
    REGMEAN_PLUSPLUS,
    LORA_CONCAT,
    LORA_SVD,
    LORA_LEGO,
    LAYER_SWAP,
    MWA,
    CONSENSUS_TA,
    TALL_MASK,
    CABS,
    PCB,
    WIDEN,
    STAR,
    ISO_C,
    ISO_CTS,
    TSV_M,
    OPCM,
    LORE,
    SVD_TASK_ARITHMETIC,
)

POST_STEPS: dict[str, PostStep] = {step.name: step for step in (LINES_STEP, AIM_STEP)}


class Operators(MutableMapping[str, Operator]):
    """By name, followed by post-steps or not; the plain ones alone are listed and counted.

    Those of installed packages come last, and are imported when they are looked up.
    """

    def __init__(self, plain: Iterable[Operator]) -> None:
        self._plain = {operator.name: operator for operator in plain}
        self._followed: dict[str, Operator] = {}

    def __getitem__(self, name: str) -> Operator:
        if PIPE not in name:
            return self._plain[name] if name in self._plain else _installed(name)
        if name not in self._followed:
            operator, *steps = (part.strip() for part in name.split(PIPE))
            chain = [POST_STEPS[step] for step in steps]
            self._followed[name] = followed(name, self[operator], chain)
        return self._followed[name]

    def __setitem__(self, name: str, operator: Operator) -> None:
        self._plain[name] = operator
        self._followed.clear()

    def __delitem__(self, name: str) -> None:
        del self._plain[name]
        self._followed.clear()

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys((*self._plain, *installed.named("operators"))))

    def __len__(self) -> int:
        return len(list(iter(self)))


def _installed(name: str) -> Operator:
    """An installed package's operator.

    Raises:
        KeyError: there is none of that name.
        ConfigurationError: it cannot be imported, or is something else.
    """
    found = installed.load("operators", name)
    if not isinstance(found, Operator):
        what = f"should be an evomerge.merging.Operator, got {type(found).__name__}"
        raise installed.refused("operators", name, what)
    if found.name != name:
        what = f"the operator calls itself {found.name!r}: recipes name it, so both must agree"
        raise installed.refused("operators", name, what)
    return found


OPERATORS = Operators(_PLAIN)


def unknown(name: str) -> tuple[str, str]:
    """What is wrong with a name that is no operator's, and the nearest one that is."""
    operator, *steps = (part.strip() for part in name.split(PIPE))
    if operator in POST_STEPS and operator not in OPERATORS:
        what = f"{operator!r} is a post-step, which stands behind an operator"
        return what, f"for example 'task_arithmetic {PIPE} {operator}'"
    if operator not in OPERATORS:
        return f"unknown operator {operator!r}", nearest(operator, OPERATORS)
    wrong = next(step for step in steps if step not in POST_STEPS)
    return f"unknown post-step {wrong!r}", nearest(wrong, POST_STEPS)
