"""The loop on a real line: a server, a label printer on the network, an operator at a terminal, a program at a pipe."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self

import pytest
import zxingcpp
from PIL import Image

from tests.e2e.test_line_run import Floor, est, floor, manifest

__all__ = ["est", "floor"]
pytestmark = pytest.mark.e2e

Fits = Callable[[dict[str, Any]], bool]
CODE = re.compile(r"\^BQN,2,\d+\^FH\^FDQA,(.*?)\^FS")


class LabelPrinter:
    """A printer that takes raw ZPL on a port of its own, and shows what it printed."""

    def __enter__(self) -> Self:
        self.labels: list[str] = []
        self._server = socket.create_server(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        self._thread.join(10)

    @property
    def url(self) -> str:
        return f"tcp://127.0.0.1:{self._server.getsockname()[1]}"

    def code_of(self, device: str) -> str:
        (found,) = {code for label in self.labels for code in CODE.findall(label) if code.startswith(f"{device} ")}
        return found

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._server.accept()
                with connection:
                    self.labels.append(connection.makefile("rb").read().decode())


@contextmanager
def opened(floor: Floor, batch: Path, *more: str, terminal: int = subprocess.PIPE) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-W", "error", "-m", "devicesim", "line", "open", str(batch)]
    with subprocess.Popen(
        [*command, "--config", str(floor.config), *more],
        stdin=terminal,
        stdout=terminal,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()


class Talk:
    """A program at the pipe: says codes, hears notices."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.heard: list[dict[str, Any]] = []

    def say(self, *codes: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write("".join(f"{code}\n" for code in codes))
        self._process.stdin.flush()

    def until(self, fits: Fits) -> dict[str, Any]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.heard.append(json.loads(line))
            if fits(self.heard[-1]):
                return self.heard[-1]
        assert self._process.stderr is not None
        raise AssertionError((self.heard, self._process.stderr.read()))


def what(kind: str, text: str = "") -> Fits:
    return lambda told: told["what"] == kind and text in f"{told.get('text', '')} {told.get('device_id', '')}"


def with_labels(floor: Floor, printer: str, more: str = "") -> None:
    people = '[operators]\n"op-1" = ["operate", "rework"]\n"op-2" = ["operate"]\n'
    floor.config.write_text(floor.config.read_text() + f'\n[label]\nprinter = "{printer}"\n{more}{people}')


def test_scan_print_scan_back_pass_and_a_wrong_label(floor):
    assert floor.init().returncode == 0
    batch = manifest(floor.directory / "batch", "sn-o", 3, batch_id="open")
    with LabelPrinter() as printer:
        with_labels(floor, printer.url)
        refused = floor.line("run", str(batch), "--operator", "op-1")
        assert refused.returncode == 2
        assert "devicesim line open" in refused.stderr
        with opened(floor, batch, "--json") as process:
            talk = Talk(process)
            talk.until(what("next", "scan a badge"))
            talk.say("op-1", "sn-o-0001")
            talk.until(what("next", "scan the label of sn-o-0001 in slot"))
            talk.say("sn-o-0002", printer.code_of("sn-o-0001"))
            talk.until(what("pass", "sn-o-0001"))
            while "the label of sn-o-0002" not in talk.heard[-1].get("expected", ""):
                talk.until(what("next"))
            talk.say(printer.code_of("sn-o-0001"))
            failed = talk.until(what("fail", "sn-o-0002"))
            assert failed["code"] == "E-LABEL"
            assert repr(printer.code_of("sn-o-0001")) in failed["text"]
            assert repr(printer.code_of("sn-o-0002")) in failed["text"]
            assert failed["shift"] == {"passed": 1, "failed": 1, "under_way": 0, "to_go": 2}
            talk.say("sn-o-0001", "B:op-2", "quit")
            assert talk.until(what("wrong"))["text"] == "sn-o-0001 has passed already"
            end = talk.until(what("end"))
            assert end["exit_code"] == process.wait(30) == 4
            assert process.stderr.read() == ""
        with opened(floor, batch, "--json", "--operator", "op-1") as process:
            talk = Talk(process)
            talk.say("SN-O0002", "sn-o-0003")  # by serial; the second while the first is under way
            for _ in range(2):
                asked = talk.until(what("next", "scan the label of"))["expected"].split()[3]
                talk.say(printer.code_of(asked))
                talk.until(what("pass", asked))
            assert talk.until(what("end"))["exit_code"] == process.wait(30) == 0
        assert len(printer.labels) == 3, "nobody was given a second label"
        report = json.loads(floor.line("report", "open", "--json").stdout)
        assert report["yield"]["passed"] == 3

        again = ("label", "print", "sn-o-0001")
        assert floor.line(*again, "--operator", "op-1").returncode == 5
        because = ("--reprint", "--reason", "label-damaged")
        assert floor.line(*again, *because, "--operator", "op-2").returncode == 2
        done = floor.line(*again, *because, "--operator", "op-1")
        assert done.returncode == 0, done.stderr
        assert printer.code_of("sn-o-0001") in done.stdout
    assert floor.line(*again, *because, "--operator", "op-1").returncode == 10  # the printer is gone
    story = json.loads(floor.line("trace", "sn-o-0001", "--json").stdout)["events"]
    assert [event["what"] for event in story].count("printed") == 1
    assert [event["who"]["operator"] for event in story if event["what"] == "reprinted"] == ["op-1", "op-1"]
    assert floor.line("verify", group="ledger").returncode == 0


def test_killed_between_print_and_scan_it_goes_on_at_the_scan(floor):
    assert floor.init().returncode == 0
    batch = manifest(floor.directory / "batch", "sn-q", 1, batch_id="cut")
    with LabelPrinter() as printer:
        with_labels(floor, printer.url)
        with opened(floor, batch, "--json", "--operator", "op-1") as process:
            talk = Talk(process)
            talk.say("sn-q-0001")
            talk.until(what("next", "scan the label"))
            process.send_signal(signal.SIGKILL)
            process.wait(30)
        code = printer.code_of("sn-q-0001")
        with opened(floor, batch, "--json", "--operator", "op-2") as process:
            talk = Talk(process)
            talk.say("sn-q-0001")
            talk.until(what("next", "scan the label"))
            talk.say(code)
            assert talk.until(what("end"))["exit_code"] == process.wait(30) == 0
        assert len(printer.labels) == 1


def test_plain_lines_through_a_pipe_and_the_end_of_input(floor):
    assert floor.init().returncode == 0
    batch = manifest(floor.directory / "batch", "sn-p", 2, batch_id="pipe")
    with opened(floor, batch, "--slots", "1") as process:
        out, err = process.communicate("nonsense\nB:op-7\nsn-p-0001\nnope", timeout=60)
    assert process.returncode == 0, err
    lines = out.splitlines()
    assert "E-SCAN  nonsense is no badge; expected: a badge" in lines
    assert "NEXT  scan a badge  (0 passed, 0 failed, 0 under way, 2 to go)" in lines
    assert "E-SCAN  nope is no unit of batch pipe; expected: a unit" in lines
    assert any(line.startswith("PASS  sn-p-0001  ==") for line in lines)
    assert "batch pipe: 1 of 2 have passed, 0 failed, 0 scrapped" in lines
    assert "\x1b" not in out


def test_an_operator_at_a_terminal_with_a_scanner_beside_it(floor, tmp_path):
    assert floor.init().returncode == 0
    with_labels(floor, f"file:{tmp_path}/labels")
    batch = manifest(floor.directory / "batch", "sn-t", 1, batch_id="tty")
    screen, terminal = pty.openpty()
    gun, serial_line = pty.openpty()
    seen = ""

    def until(text: str) -> None:
        nonlocal seen
        while text not in seen:
            seen += os.read(screen, 4096).decode()

    scanner = ("--scanner", os.ttyname(serial_line))
    with opened(floor, batch, "--bell", *scanner, terminal=terminal) as process:
        until("scan a badge")
        os.write(screen, b"op-1\n")
        until("op-1 works at this station now")
        os.write(gun, b"sn-t-0001\r")
        until("scan the label of sn-t-0001 in slot 1")
        picture = Image.open(tmp_path / "labels/sn-t-0001.png").convert("L")
        (code,) = [found.text for found in zxingcpp.read_barcodes(picture)]
        os.write(gun, code.encode() + b"\r\n")
        until("nothing is left to go")
        until("report ")
        assert process.wait(30) == 0
    for handle in (screen, terminal, gun, serial_line):
        os.close(handle)
    assert "\x1b[" in seen
    assert "\a" in seen
    assert "PASS  sn-t-0001" in seen


def test_a_signal_ends_the_loop_and_the_label_waits(floor, tmp_path):
    assert floor.init().returncode == 0
    with_labels(floor, f"file:{tmp_path}/labels")
    batch = manifest(floor.directory / "batch", "sn-i", 1, batch_id="sig")
    with opened(floor, batch, "--json", "--operator", "op-1") as process:
        talk = Talk(process)
        talk.say("sn-i-0001")
        talk.until(what("next", "scan the label"))
        process.send_signal(signal.SIGTERM)
        assert talk.until(what("end"))["exit_code"] == process.wait(30) == 143
    trace = json.loads(floor.line("trace", "sn-i-0001", "--json").stdout)
    assert (trace["state"], trace["failure"]) == ("verified", None)


def test_mistakes_are_one_line(floor, tmp_path):
    assert floor.init().returncode == 0
    batch = manifest(floor.directory / "batch", "sn-e", 1, batch_id="err")
    assert floor.line("label", "print", "sn-e-0001").returncode == 3
    (tmp_path / "bad.label").write_text("size 20 20\nqr 1 1 9 | {serial}\n")
    with_labels(floor, "file:labels", f'template = "{tmp_path}/bad.label"\n')
    done = floor.line("open", str(batch), "--operator", "op-1")
    assert done.returncode == 3
    assert "bad.label:2: the QR code carries something the device itself says" in done.stderr
    done = floor.line("label", "render", "--template", f"{tmp_path}/bad.label", "--out", f"{tmp_path}/x.png")
    assert done.returncode == 3
    (tmp_path / "bad.label").write_text("size 20 20\nqr 1 1 18 | {device_id}\n")
    done = floor.line("label", "render", "--template", f"{tmp_path}/bad.label", "--out", f"{tmp_path}/x.png")
    assert (done.returncode, done.stdout) == (0, f"{tmp_path}/x.png: its QR code says sn-0001\n")
    assert floor.line("label", "render", "sn-e-0001", "--out", f"{tmp_path}/x.gif").returncode == 2
    assert floor.line("open", str(batch), "--operator", "op-1", "--scanner", f"{tmp_path}/no-tty").returncode == 3
    assert floor.line("open", str(batch), "--operator", "op-9").returncode == 2
