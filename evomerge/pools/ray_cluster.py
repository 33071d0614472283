"""A Ray cluster: joining one or starting one, and which nodes it has."""

from __future__ import annotations

import atexit
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from evomerge.errors import ConfigurationError, NoWorkersLeft, Problem
from evomerge.pools.nodes import cuda_gpus
from evomerge.pools.placement import Gpu

OBJECT_STORE_BYTES = 100 * 2**20  # of a cluster that is started here: hardly anything goes there
LOOK_S = 60.0
CONNECT_S = 10.0
ANSWER_S = 2.0  # a cluster that is well tells its nodes in milliseconds
PRELOAD = "evomerge.pools.preload"  # what processes import that wait for work
PRELOAD_CPUS = 8  # where more of them wait, they would take memory that nobody needs
AUTHENTICATION = "set RAY_AUTH_MODE=token, with its token in ~/.ray/auth_token or RAY_AUTH_TOKEN"
SETTINGS = {
    # Ray would end the driver, with no word to it, a minute after it has lost the cluster's head.
    "RAY_gcs_rpc_server_reconnect_timeout_s": "600",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # what actors see of GPUs is set in `RayWorker`
    "RAY_IGNORE_UNHANDLED_ERRORS": "1",  # a call to a worker that died is no news
}
NEEDS = "needs Ray: pip install 'evomerge[ray]'"


logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ClusterNode:
    """A node as Ray counts it. `memory_bytes` is what Ray would lend to tasks."""

    id: str
    name: str
    cpus: float
    gpus: float
    memory_bytes: int


def load_ray() -> Any:
    """The library, which is imported only where a pool is made of it.

    Raises:
        ConfigurationError: it is not installed.
    """
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    try:
        import ray
    except ImportError as error:
        raise ConfigurationError(Problem("pool.kind (ray)", NEEDS)) from error
    return ray


class Cluster:
    """A connection to a Ray cluster.

    Raises:
        ConfigurationError: there is none at the address, or it does not let us in.
    """

    def __init__(self, address: str, local_cpus: float) -> None:
        """Join one, or start one.

        address: `local` starts one on this machine, which ends with the connection; `auto` joins
        the one of RAY_ADDRESS, or that `ray start` has made this machine a part of, and starts one
        where there is none; else where it is.
        local_cpus: what a cluster that is started here may lend.
        """
        self.ray = load_ray()
        self.left = threading.Event()
        self._ours = not self.ray.is_initialized()  # who has joined one already keeps it
        self.address = (_found() if address == "auto" else address) if self._ours else "joined"
        if not self._ours:
            return
        options: dict[str, Any] = {"log_to_driver": False, "configure_logging": False}
        if self.address == "local":
            options |= {
                "num_cpus": local_cpus,
                "include_dashboard": False,
                "object_store_memory": OBJECT_STORE_BYTES,
            }
            if local_cpus <= PRELOAD_CPUS:  # Ray starts as many processes, before it needs them
                options["_system_config"] = {"preload_python_modules": [PRELOAD]}
        else:
            _knock(self.address)
        with _said(self.address, self.ray), _own_signals():
            self.ray.init(address=self.address, namespace="evomerge", **options)
        # `log_to_driver` leaves what raylets say when nodes die, pages of it, on standard output.
        self.ray._private.worker._worker_logs_enabled = False

    def nodes(self) -> dict[str, ClusterNode]:
        """Those that are alive, by id."""
        found = {}
        for node in self.ray.nodes():
            if node["Alive"]:
                resources, id_ = node["Resources"], node["NodeID"]
                found[id_] = ClusterNode(
                    id=id_,
                    name=f"{node['NodeManagerHostname']}-{id_[:6]}",
                    cpus=resources.get("CPU", 0.0),
                    gpus=resources.get("GPU", 0.0),
                    memory_bytes=int(resources.get("memory", 0)),
                )
        return found

    def gpus_of(self, node: ClusterNode) -> tuple[Gpu, ...]:
        """The GPUs of a node, asked for there, with all of their memory.

        What other runs have of it at the moment they give up when we have our share of the workers.
        """
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        look = self.ray.remote(num_cpus=0, num_gpus=0, max_retries=0)(cuda_gpus)
        strategy = NodeAffinitySchedulingStrategy(node.id, soft=False)
        try:
            found = self.ray.get(
                look.options(scheduling_strategy=strategy).remote(whole=True), timeout=LOOK_S
            )
        except self.ray.exceptions.RayError as error:
            logger.warning("%s: its GPUs are left out: %s", node.name, error)
            return ()
        return tuple(found)

    def pickled(self, something: Any) -> bytes:
        """As Ray would send it: by reference where it has a name, else by value."""
        return bytes(self.ray.cloudpickle.dumps(something))

    def is_there(self) -> bool:
        """Whether it answers."""
        try:
            self.nodes()
        except Exception:  # a client of Ray has many kinds for that
            return False
        return True

    def close(self) -> None:
        """Leave it; one that was started here ends."""
        if self._ours:
            self.ray.shutdown()
        self.left.set()

    def abandon(self) -> None:
        """Leave one that does not answer, without a word to it.

        Ray would wait for it when the process ends, and crashes where it is not allowed to.
        """
        if not self.address.startswith("ray://"):
            atexit.register(_end_without_ray)


def _end_without_ray() -> None:
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(NoWorkersLeft.exit_code)


@contextmanager
def _said(address: str, ray: Any) -> Iterator[None]:
    """Without Ray's own lines on the screen, and with what is wrong in words."""
    logging.getLogger("ray").setLevel(logging.ERROR)
    usual = (ConnectionError, RuntimeError, ValueError, TimeoutError, OSError)
    try:
        yield
    except (*usual, ray.exceptions.RayError) as error:
        raise _cannot_join(address, error) from None


def _cannot_join(address: str, error: Exception) -> ConfigurationError:
    text = (isinstance(error, OSError) and error.strerror) or str(error)
    what = text.strip().partition("\n")[0] or type(error).__name__
    hint = "`ray status` says whether a cluster is there; `local` starts one here"
    if "AuthToken" in _whole(error):
        what, hint = "it lets nobody in without its token", AUTHENTICATION
    return ConfigurationError(
        Problem(f"pool.address {address}", f"no Ray cluster can be joined: {what}", hint)
    )


def _whole(error: BaseException | None) -> str:
    """All that an error says, and those that it came from."""
    return "" if error is None else f"{error}\n{_whole(error.__cause__ or error.__context__)}"


@contextmanager
def _own_signals() -> Iterator[None]:
    """Ray puts handlers of its own in the place of the driver's, which would not resume a run.

    Also below Python, where they are put back by setting them again; only the main thread may.
    """
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


def _found() -> str:
    """Where `auto` leads to.

    Ray's own `auto` also joins what it finds among the machine's processes: the cluster of another
    run, which ends with that run.
    """
    if given := os.environ.get("RAY_ADDRESS"):
        return "local" if given == "auto" else given
    temporary = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"  # noqa: S108
    with suppress(OSError, ConfigurationError):
        noted = (Path(temporary) / "ray" / "ray_current_cluster").read_text("utf-8").strip()
        _knock(noted)  # it stands there still when a cluster was killed
        return noted
    return "local"


def _knock(address: str) -> None:
    """See that somebody listens there; Ray itself would wait for minutes.

    Raises:
        ConfigurationError: nobody does.
    """
    place = urlsplit(address if "://" in address else f"ray://{address}")
    try:
        host, port = place.hostname, place.port
    except ValueError as error:
        raise _cannot_join(address, error) from None
    if host is None or port is None:
        wrong = ValueError("expected `auto`, `local`, HOST:PORT or ray://HOST:PORT")
        raise _cannot_join(address, wrong)
    hosts = [host]
    if host in ("localhost", "127.0.0.1", "::1"):  # which Ray takes for the machine's own address
        hosts.append(socket.gethostname())
    failed: OSError = ConnectionError("nobody listens there")
    for one in hosts:
        try:
            socket.create_connection((one, port), timeout=CONNECT_S).close()
        except OSError as error:
            failed = error
        else:
            return
    raise _cannot_join(address, failed)


# --- ahead of time --------------------------------------------------------------------------------

_begun: dict[tuple[str, float], Future[Cluster]] = {}


@contextmanager
def begun(address: str, local_cpus: float) -> Iterator[None]:
    """Join or start a cluster in the background; `joined` takes it. Nobody did: it is left again.

    Raises:
        ConfigurationError: Ray is not installed.
    """
    load_ray()
    key, future = (address, local_cpus), Future[Cluster]()

    def begin() -> None:
        try:
            cluster = Cluster(address, local_cpus)
        except BaseException as error:  # is raised where it is waited for
            future.set_exception(error)
            return
        future.set_result(cluster)
        cluster.left.wait()  # Ray's processes die with the thread that has started them

    _begun[key] = future
    threading.Thread(target=begin, daemon=True).start()
    try:
        yield
    finally:
        if _begun.pop(key, None) is not None:
            with _own_signals():
                if future.exception() is None:
                    future.result().close()


def joined(address: str, local_cpus: float) -> Cluster:
    """The cluster that was begun, or else one that is joined or started now.

    Raises:
        ConfigurationError: there is none at the address, or it does not let us in.
    """
    future = _begun.pop((address, local_cpus), None)
    with _own_signals():
        return Cluster(address, local_cpus) if future is None else future.result()
