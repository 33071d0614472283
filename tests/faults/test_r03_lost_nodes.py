"""R3: a Ray cluster of a head and three nodes on one machine; nodes are lost, others come.

Passes if: a node that is lost hard in generation 3 has its jobs given out again within 20 s, a new
one of generation 6 is used within 30 s, and digest, evaluations and front are those of an
undisturbed run. If all are lost, the run ends with exit code 7 and can be resumed to the same.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import toy_tasks
from ray_clusters import Nodes
from toy_pools import make_spec, search
from toys import Count, outcome_of

from evomerge.errors import NoWorkersLeft
from evomerge.pools.crew import Answer, Event, Gone
from evomerge.pools.dispatch import Dispatcher
from evomerge.pools.ray_cluster import Cluster, ClusterNode
from evomerge.pools.ray_crew import RayCrew, Seats
from evomerge.pools.worker import WorkerSpec

CANDIDATES = 96  # twelve generations


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return toy_tasks.write_models(tmp_path_factory.mktemp("models"))


@contextmanager
def added(cluster: Nodes, count: int) -> Iterator[list[Any]]:
    """So many nodes beside the head, whoever may be lost or added meanwhile."""
    made = [cluster.add(1) for _ in range(count)]
    try:
        yield made
    finally:
        for node in list(cluster.cluster.worker_nodes):
            cluster.lose(node)
        cluster.wait_for(1)


class Story(Count):
    """Does something to the cluster after a generation; notes when events came."""

    def __init__(self, then: dict[int, Any]) -> None:
        super().__init__()
        self.generation = 0
        self.then = then
        self.events: list[tuple[float, Event]] = []
        self.crew: RayCrew | None = None

    def told(self, evaluations: list[Any]) -> None:
        self.generation += 1
        if (action := self.then.get(self.generation)) is not None:
            action()

    def pool(self, spec: WorkerSpec, log: Path | None, head: str, patience_s: float) -> Dispatcher:
        def seats(node: ClusterNode) -> Seats:
            return Seats(0 if node.id == head else 1, 1.0, why="the head")

        crew = RayCrew(Cluster("auto", 0), spec, seats, patience_s=patience_s, log=log)
        wait = crew.wait

        def listen(timeout_s: float) -> list[Event]:
            events = wait(timeout_s)
            self.events += [(time.monotonic(), event) for event in events]
            return events

        crew.wait = listen  # type: ignore[method-assign]
        self.crew = crew
        return Dispatcher(crew)


@pytest.mark.slow
def test_a_node_is_lost_and_another_comes(ray_nodes, models, tmp_path, figure):
    expected = outcome_of(
        search(models, tmp_path / "0", make_spec(models), 0, "cma_es", candidates=CANDIDATES)
    )
    at: dict[str, float] = {}
    new: list[Any] = []

    def lose() -> None:
        at["lost"] = time.monotonic()
        ray_nodes.lose(nodes[0])

    def come() -> None:
        at["came"] = time.monotonic()
        new.append(ray_nodes.add(1))

    story = Story({3: lose, 6: come})
    head = ray_nodes.cluster.head_node.node_id
    with added(ray_nodes, 3) as nodes:
        search(
            *(models, tmp_path / "run", make_spec(models, sleep_s=0.4), 3, "cma_es"),
            lambda spec, log: story.pool(spec, log, head, 60.0),
            candidates=CANDIDATES,
            watchers=(story,),
        )
    assert outcome_of(tmp_path / "run") == expected
    gone = [(when, event) for when, event in story.events if isinstance(event, Gone)]
    assert [event.why for _, event in gone] == ["node"]
    figure("R3", "jobs of a lost node are given out again", gone[0][0] - at["lost"], 20.0)
    name = f"-{new[0].node_id[:6]}-"
    used = [when for when, e in story.events if isinstance(e, Answer) and name in e.worker]
    assert used, "the new node was not used"
    figure("R3", "a new node answers", used[0] - at["came"], 30.0)


def test_all_nodes_are_lost(ray_nodes, models, tmp_path):
    spec = make_spec(models, sleep_s=0.1)
    head = ray_nodes.cluster.head_node.node_id
    expected = outcome_of(
        search(models, tmp_path / "0", make_spec(models), 0, "cma_es", candidates=24)
    )
    with added(ray_nodes, 1) as nodes:
        story = Story({2: lambda: ray_nodes.lose(nodes[0])})
        with pytest.raises(NoWorkersLeft) as caught:
            search(
                *(models, tmp_path / "run", spec, 3, "cma_es"),
                lambda spec, log: story.pool(spec, log, head, 2.0),
                candidates=24,
                watchers=(story,),
            )
    assert caught.value.exit_code == 7
    search(models, tmp_path / "run", make_spec(models), 0, "cma_es", candidates=24)
    assert outcome_of(tmp_path / "run") == expected
