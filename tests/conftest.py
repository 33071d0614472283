"""What several test files share."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

# Before torch is imported anywhere: one thread is what workers use, and what is reproducible.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


ALONE = ("faults", "pools", "test_placement.py")  # they kill, start clusters, and measure time


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what may not run beside other tests."""
    here = Path(__file__).parent
    for item in items:
        if item.path.relative_to(here).parts[0] in ALONE:
            item.add_marker(pytest.mark.alone)


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Torch computes on one thread, as in a worker."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_zoo() -> Path:
    """The tiny family of seed 0 (base, sort, back, rot), from the user's cache or trained now."""
    from evomerge.zoo.tiny import tiny

    return tiny(seed=0)


@pytest.fixture(scope="session")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Any], dict[str, Any]]:
    """What comes of a toy's search that nobody disturbs; each is run once."""
    from toys import outcome_of

    known: dict[str, dict[str, Any]] = {}

    def outcome(toy: Any) -> dict[str, Any]:
        if (key := repr(toy)) not in known:
            known[key] = outcome_of(toy.run(tmp_path_factory.mktemp("uninterrupted")))
        return known[key]

    return outcome


@pytest.fixture(scope="session")
def ray_nodes() -> Iterator[Any]:
    """The one Ray cluster of all tests that need one: this process is its driver."""
    import ray_clusters

    with ray_clusters.nodes(head_cpus=2) as cluster:
        yield cluster
