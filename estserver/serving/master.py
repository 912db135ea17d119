"""gunicorn's master around our worker: signals, heartbeats and restarts are its own; settings and log are ours.

No command line, configuration file or environment of gunicorn's is read. The master binds the socket and reads
certificate and key before it forks, so that what is wrong with them is said once, at start; workers inherit both.
On SIGHUP it reads the files again and replaces the workers; files that cannot be used leave everything as it was.
"""

from __future__ import annotations

import logging
import math
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable, Collection
from typing import Any

from gunicorn.app.base import BaseApplication
from gunicorn.arbiter import Arbiter

from estserver.serving.context import build_context
from estserver.serving.errors import CannotServe
from estserver.serving.options import ServeOptions, WsgiApp
from estserver.serving.worker import FrontWorker

BACKLOG = 1024
HEARTBEAT_SECONDS = 60
STOP_MARGIN_SECONDS = 3
SPAWN_PAUSE_SECONDS = 0.05


def serve(load_app: Callable[[], WsgiApp], options: ServeOptions) -> int:
    """Serve the application that `load_app` gives, in each worker, until a signal ends it; return the exit status.

    SIGTERM finishes what is in flight, SIGINT stops at once, SIGHUP reads certificate and key again.

    Raises:
        CannotServe: the address, the certificate or the key cannot be used; nothing was started.
    """
    master = os.getpid()
    front = _Front(load_app, options)
    try:
        _Master(front).run()
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
        if os.getpid() != master:
            _leave(status)
        return status
    finally:
        front.close()
    return 0


def _leave(status: int) -> None:
    """End a worker here: what its parent still wants to clean up is not the child's to touch."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


class _Front(BaseApplication):
    """What gunicorn calls the application: the settings, and how to get the WSGI callable in a worker."""

    def __init__(self, load_app: Callable[[], WsgiApp], options: ServeOptions) -> None:
        self.options = options
        self.context = build_context(options)
        self.listener = listen(options.host, options.port)
        self.booted, self._boot = os.pipe()
        os.set_blocking(self._boot, False)
        self._load_app = load_app
        super().__init__()

    def close(self) -> None:
        """Give socket and pipe back."""
        self.listener.close()
        os.close(self.booted)
        os.close(self._boot)

    def load_config(self) -> None:
        for name, value in {
            "workers": self.options.workers,
            "timeout": HEARTBEAT_SECONDS,
            "graceful_timeout": math.ceil(self.options.graceful_seconds) + STOP_MARGIN_SECONDS,
            "control_socket_disable": True,
            "worker_class": FrontWorker,
        }.items():
            self.cfg.set(name, value)

    def load(self) -> WsgiApp:
        return self._load_app()

    def announce_worker(self) -> None:
        """Tell the master that this worker serves."""
        try:
            os.write(self._boot, b".")
        except BlockingIOError:
            return  # nobody reads any more after the first start


class _Log:
    """gunicorn's words in our log: its news is for debugging, what went wrong keeps its level."""

    def __init__(self, logger: logging.Logger) -> None:
        self.cfg: Any = None
        self.info = logger.debug
        self.warning = logger.warning
        self.error = logger.error
        self.critical = logger.critical
        self.exception = logger.exception

    def debug(self, *_: object, **__: object) -> None:
        """Say nothing: it would print every setting gunicorn has."""

    def setup(self, cfg: object) -> None:
        """Take nothing from gunicorn's settings."""

    def reopen_files(self) -> None:
        """Hold no files."""

    def close_on_exec(self) -> None:
        """Hold no files."""


class _Master(Arbiter):
    """gunicorn's master on a socket that is already bound."""

    def __init__(self, front: _Front) -> None:
        self._front = front
        self._announced = False
        self._booted = 0
        self._leaving: set[int] = set()
        super().__init__(front)
        self.WORKERS: dict[int, FrontWorker] = {}
        self.LISTENERS = [front.listener]

    def setup(self, app: _Front) -> None:
        self.log = _Log(app.options.log)
        super().setup(app)

    def manage_workers(self) -> None:
        """Keep as many workers as wanted; those on their way out do not count."""
        self._leaving &= self.WORKERS.keys()
        staying = sorted(self.WORKERS.keys() - self._leaving, key=lambda pid: self.WORKERS[pid].age)
        for _ in range(len(staying), self.num_workers):
            self.spawn_worker()
            time.sleep(SPAWN_PAUSE_SECONDS)
        self._dismiss(staying[: max(0, len(staying) - self.num_workers)])
        if not self._announced:
            self._await_workers()

    def reload(self) -> None:
        """Start new workers and let the old ones finish.

        gunicorn would wait for that, however long a slow client makes it, and meanwhile hear no signal and replace no
        worker that dies.
        """
        old = self.WORKERS.keys() - self._leaving
        self._leaving |= old
        self.manage_workers()
        self._dismiss(old)

    def _dismiss(self, pids: Collection[int]) -> None:
        """Let workers finish what they have begun, and end."""
        self._leaving |= set(pids)
        for pid in pids:
            self.kill_worker(pid, signal.SIGTERM)

    def _await_workers(self) -> None:
        """Say that the server is ready, once, when every worker is; a signal goes first."""
        while self.SIG_QUEUE.empty():
            if self._booted >= self._front.options.workers:
                self._announced = True
                host, port = self._front.listener.getsockname()[:2]
                self._front.options.log.info("serving on %s port %s with %s workers", host, port, self._booted)
                self._front.options.on_ready(host, port)
                return
            if select.select([self._front.booted], [], [], 0.1)[0]:
                self._booted += len(os.read(self._front.booted, 64))

    def stop(self, graceful: bool = True) -> None:
        """Stop the workers, and say so."""
        self._front.options.log.info("stopping")
        super().stop(graceful)

    def handle_hup(self) -> None:
        """Read certificate and key again; only if they can be used, replace the workers."""
        try:
            context = build_context(self._front.options)
            self._front.options.before_reload()
        except CannotServe as error:
            self.log.error("not reloaded: %s", error)  # noqa: TRY400  (a line for the operator, not a fault of ours)
            return
        self._front.context = context
        self.reload()
        self._front.options.log.info("certificate and key read again, workers replaced")

    def handle_usr2(self) -> None:
        """Ignore gunicorn's re-execution: it would read a command line that is not its own."""


def listen(host: str, port: int) -> socket.socket:
    """Bind the listening socket.

    Raises:
        CannotServe: the address is in use, not ours or not resolvable.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise CannotServe(
            f"cannot listen on {host}:{port}: {error.strerror or error} — give another address"
        ) from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
        listener.settimeout(0)
    except OSError as error:
        listener.close()
        advice = "stop the other program or choose another port"
        raise CannotServe(f"cannot listen on {host}:{port}: {error.strerror or error} — {advice}") from error
    return listener
