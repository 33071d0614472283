"""Ray nodes as `ray start` makes them: processes of their own, killed as machines are."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from drivers import processes_of
from ray_clusters import HERE, SETTINGS

TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0123456789abcdef" * 4}


class Started:
    """A node of its own: `ray start` in a session, with a folder and ports of its own."""

    def __init__(self, folder: Path, cpus: int, address: str | None = None) -> None:
        """address: of the head; None starts one."""
        self.address = address or f"{_own_address()}:{free_port()}"
        options = [f"--num-cpus={cpus}", "--disable-usage-stats", "--block"]
        options += ["--min-worker-port=0", "--max-worker-port=0"]
        options += [
            f"--dashboard-agent-listen-port={free_port()}",
            "--object-store-memory=80000000",
        ]
        if address is None:
            port = self.address.rpartition(":")[2]
            options += ["--head", f"--port={port}", "--include-dashboard=false"]
            client_port = free_port()
            self.client_address = f"ray://127.0.0.1:{client_port}"
            options += [f"--ray-client-server-port={client_port}", f"--temp-dir={folder}"]
        else:
            options += [f"--address={address}"]
        paths = [str(HERE.parent), str(HERE)]
        settings = (
            SETTINGS | TOKEN | {"PYTHONPATH": os.pathsep.join(paths), "RAY_TMPDIR": str(folder)}
        )
        self.log = folder / f"node-{free_port()}.log"
        with self.log.open("w") as log:
            self._process = subprocess.Popen(
                [str(Path(sys.executable).parent / "ray"), "start", *options],
                env=os.environ | settings,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    @property
    def session(self) -> int:
        """Of all its processes."""
        return self._process.pid

    def wait(self) -> None:
        """Until it is up."""
        until = time.monotonic() + 60
        while "Ray runtime started" not in (said := self.log.read_text()):
            assert self._process.poll() is None, said
            assert time.monotonic() < until, said
            time.sleep(0.1)

    def kill(self) -> None:
        """All that belongs to it, at once, and nothing else."""
        for _ in range(3):  # who was just being started
            for pid in processes_of(self._process.pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self._process.wait()
            time.sleep(0.1)


def free_port() -> int:
    """One that nobody has now."""
    with socket.create_server(("", 0)) as server:
        return int(server.getsockname()[1])


def _own_address() -> str:
    import ray

    return str(ray.util.get_node_ip_address())
