"""The front is a room of its own: lifted out under another name, it serves the application of its docstring."""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import estserver.serving
from tests.e2e.serving_support import Answer, Server, ask, certify, make_directory

pytestmark = pytest.mark.e2e

GET = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
ALONE = """
import sys
for name in ("estserver", "devicesim", "flask", "sqlalchemy", "pydantic", "asn1crypto"):
    sys.modules[name] = None  # whoever imports it fails
"""


class Lifted(Server):
    """The application of the docstring, in a directory that holds the room, its files and nothing else of ours."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        _lift(Path(estserver.serving.__file__).parent, directory / "front")
        (directory / "hello.py").write_text(ALONE + _example().replace("port=8443", "port=0"))
        self.process = subprocess.Popen(
            [sys.executable, "-u", "-W", "error", "hello.py"], cwd=directory, stdout=subprocess.PIPE, text=True
        )
        line = self.process.stdout.readline()
        assert line.startswith("127.0.0.1 "), line
        self.port = int(line.split()[1])

    def stop(self) -> str:
        self.process.terminate()
        assert self.process.wait(20) == 0
        self.process.stdout.close()
        return ""

    def hello(self, client=None) -> Answer:
        with self.connected(client=client) as sock:
            return ask(sock, GET)


def _lift(room: Path, to: Path) -> None:
    to.mkdir()
    for source in room.glob("*.py"):
        (to / source.name).write_text(source.read_text().replace("estserver.serving", "front"))


def _example() -> str:
    (code,) = re.findall(r"\n\n((?:    .*\n|\n)+)", estserver.serving.__doc__)
    return textwrap.dedent(code).replace("estserver.serving", "front")


def test_the_front_serves_another_application(tmp_path):
    issuing = make_directory(tmp_path)
    with Lifted(tmp_path) as server:
        assert server.hello().body == b"hello, stranger\n"
        client = certify("somebody", issuing)
        assert server.hello(client).body == b"hello, %d octets of certificate\n" % len(client.der)
