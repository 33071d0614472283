"""What FusionBench 0.2.33 has computed once: golden/fusionbench.safetensors, read."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors import safe_open

GOLDEN = Path(__file__).parent / "golden" / "fusionbench.safetensors"

with safe_open(GOLDEN, "pt") as file:
    _METADATA = file.metadata()
    _STORED = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
VERSIONS = json.loads(_METADATA["versions"])
CASES = json.loads(_METADATA["cases"])  # name: [method, parameters, experts, families]


def cases_of(*methods):
    """(case, family) of all cases of some methods."""
    return [(name, one) for name, row in CASES.items() if row[0] in methods for one in row[3]]


def states_of(case, family):
    """The models that went into a case: the base, and the experts in their order."""
    return {model: _under(f"in/{family}/{model}/") for model in ("base", *CASES[case][2])}


def expected(case, family):
    """What FusionBench made of them, by tensor."""
    return _under(f"out/{case}/{family}/")


def _under(prefix):
    return {n.removeprefix(prefix): value for n, value in _STORED.items() if n.startswith(prefix)}
