"""HAProxy and nginx as docs/proxy.md sets them up, each in front of a server of its own."""

from __future__ import annotations

import contextlib
import http.client
import re
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.conftest import require_program
from tests.est_server import EST, Answer, Home, RunningServer, found_home

PAGE = (Path(__file__).parents[2] / "docs" / "proxy.md").read_text("utf-8")
DIRECTORY = "/etc/estline"
NGINX = """
daemon off;
pid {directory}/nginx.pid;
error_log {directory}/error.log;
events {{ worker_connections 256; }}
http {{
    access_log off;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    include {directory}/estline.conf;
}}
"""


def samples(proxy: str) -> tuple[str, str]:
    """The two blocks of the page for one proxy: the section for estserver.toml, and the proxy's own configuration."""
    chapter = re.search(rf"^## {proxy}\n(.*?)^## ", PAGE, re.DOTALL | re.MULTILINE | re.IGNORECASE)
    assert chapter
    blocks = dict(re.findall(r"^```(\w+)\n(.*?)^```$", chapter[1], re.DOTALL | re.MULTILINE))
    return blocks["toml"], blocks[proxy]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass(frozen=True)
class Proxied:
    """A server behind a proxy: `port` is the proxy's, as clients see it."""

    name: str
    app: RunningServer
    port: int

    @property
    def home(self) -> Home:
        return self.app.home

    def line_with(self, text: str) -> str:
        """Wait for a line of the server's that says this."""
        return line_with(self.app, text)

    def direct(
        self, method: str, path: str, headers: Mapping[str, str] | list[tuple[str, str]] = (), **how: Any
    ) -> Answer:
        """Ask the server itself, on plain HTTP, past the proxy."""
        return ask_plain(self.app.port, method, path, headers, **how)


def line_with(app: RunningServer, text: str) -> str:
    """Wait for a line of a server's that says this."""
    deadline = time.monotonic() + 20
    while True:
        for line in app.stderr.splitlines(keepends=True):
            if text in line and line.endswith("\n"):
                return line
        assert time.monotonic() < deadline, app.stderr
        time.sleep(0.02)


def ask_plain(
    port: int,
    method: str,
    path: str,
    headers: Mapping[str, str] | list[tuple[str, str]] = (),
    *,
    body: bytes | None = None,
    source: str = "127.0.0.1",
) -> Answer:
    """One request on plain HTTP, from an address of this machine."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20, source_address=(source, 0))
    connection.putrequest(method, path)
    for name, value in headers.items() if isinstance(headers, Mapping) else headers:
        connection.putheader(name, value)
    if body is not None:
        connection.putheader("Content-Length", str(len(body)))
    connection.endheaders(body)
    response = connection.getresponse()
    answer = Answer(response.status, tuple(response.getheaders()), response.read(), method)
    connection.close()
    return answer.check()


@contextlib.contextmanager
def proxied(name: str, directory: Path, settings: str = "") -> Iterator[Proxied]:
    """Run a server and, before it, a proxy."""
    program = require_program(name, name)
    section, sample = samples(name)
    home = found_home(directory / "home", idevid=True)
    home.configure(settings + section)
    (home.path / "haproxy.pem").write_bytes(
        (home.path / "tls.pem").read_bytes() + (home.path / "private" / "tls.key").read_bytes()
    )
    with RunningServer(home, "--behind-proxy") as app:
        port = free_port()
        text = sample.replace(DIRECTORY, str(home.path)).replace("127.0.0.1:8080", f"127.0.0.1:{app.port}")
        with running(_command(name, program, directory, text.replace("8443", str(port))), port):
            yield Proxied(name, app, port)


def _command(name: str, program: str, directory: Path, text: str) -> list[str]:
    if name == "haproxy":
        (directory / "haproxy.cfg").write_text(text, "utf-8")
        return [program, "-f", str(directory / "haproxy.cfg")]
    (directory / "estline.conf").write_text(text, "utf-8")
    (directory / "nginx.conf").write_text(NGINX.format(directory=directory), "utf-8")
    return [program, "-p", str(directory), "-c", str(directory / "nginx.conf")]


@contextlib.contextmanager
def running(command: list[str], port: int) -> Iterator[None]:
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        _await(process, port)
        yield
    finally:
        process.terminate()
        process.communicate(timeout=20)


def _await(process: subprocess.Popen[str], port: int) -> None:
    deadline = time.monotonic() + 20
    while True:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            return
        time.sleep(0.05)


def tls_version_refused(port: int, version: ssl.TLSVersion) -> bool:
    """Whether a client of this version alone gets no handshake."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version = context.maximum_version = version
    with socket.create_connection(("127.0.0.1", port), timeout=10) as raw:
        try:
            context.wrap_socket(raw).close()
        except ssl.SSLError:
            return True
    return False


ENROLL = f"{EST}/simpleenroll"
