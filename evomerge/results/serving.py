"""optuna-dashboard on a run's mirror, in a process of its own."""

from __future__ import annotations

import socketserver
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from evomerge.errors import ConfigurationError, Problem
from evomerge.results.mirror import Mirror

FRESH_S = 60.0  # how often trials that were over and have changed are read anew

App = Callable[[dict[str, Any], Any], Iterable[bytes]]


def check_installed() -> None:
    """That optuna-dashboard is there.

    Raises:
        ConfigurationError: it is not; says how to install it.
    """
    if find_spec("optuna_dashboard") is None:
        what = "needs the package optuna-dashboard"
        raise ConfigurationError(
            Problem("evomerge dashboard", what, "pip install 'evomerge[dashboard]'")
        )


class Shown:
    """The application, as far as it only reads: what would be written to a mirror is lost."""

    def __init__(self, mirror: Mirror) -> None:
        self._mirror = mirror
        self._rewritten, self._remade = mirror.rewritten, mirror.remade
        self._since = time.monotonic()
        self._app = self._made()

    def _made(self) -> App:
        import optuna
        from optuna_dashboard import wsgi

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        made: App = wsgi(optuna.storages.get_storage(f"sqlite:///{self._mirror.path.resolve()}"))
        return made

    def refresh(self) -> None:
        """Called after the mirror was brought up to date: a storage keeps what it has read."""
        now, mirror = time.monotonic(), self._mirror
        is_old = mirror.rewritten != self._rewritten and now - self._since > FRESH_S
        if is_old or mirror.remade != self._remade:
            self._rewritten, self._remade, self._since = mirror.rewritten, mirror.remade, now
            self._app = self._made()

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        """Answer a request."""
        if environ["REQUEST_METHOD"] not in ("GET", "HEAD"):
            start_response("405 Method Not Allowed", [("Content-Type", "application/json")])
            return [b'{"reason": "This study mirrors a run of evomerge and cannot be changed."}']
        return self._app(environ, start_response)


class _Server(socketserver.ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the library's name
        """Say nothing: the terminal is for the run."""


@contextmanager
def served(app: App, host: str, port: int) -> Iterator[int]:
    """Serve an application in a thread; the port, which 0 leaves to the system.

    Raises:
        ConfigurationError: nobody can listen there.
    """
    try:
        server = make_server(host, port, app, server_class=_Server, handler_class=_Quiet)
    except OSError as error:
        place, what = f"--host {host} --port {port}", error.strerror or str(error)
        hint = "choose another --port; 0 takes a free one"
        raise ConfigurationError(Problem(place, what, hint)) from None
    except OverflowError as error:
        raise ConfigurationError(Problem(f"--port {port}", str(error))) from None
    thread = threading.Thread(target=server.serve_forever, daemon=True, name="dashboard")
    thread.start()
    try:
        yield int(server.server_port)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
