"""Who else has a say, who else is told: real HTTP servers on this machine, real programs, and a process that dies."""

from __future__ import annotations

import base64
import json
import ssl
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from devicesim.line.calling import Caller, HookFailed
from devicesim.line.findings import InputInvalid
from devicesim.line.hooks import Hooks, Telling
from devicesim.line.ledger import Ledger
from devicesim.line.settings import AllowHook, DoneHook, load_settings
from devicesim.line.statements import HOOK, sealing, unseal
from devicesim.line.states import FailureCode, State
from devicesim.transport import ClientIdentity
from tests.line_support import PaperLine, Watching
from tests.mqtt_pki import SERVER, real_now

Answer = tuple[int, bytes]


@dataclass
class Mes:
    """A manufacturing execution system: what it heard, and what it answers."""

    answer: Callable[[dict[str, Any]], Answer] = lambda _body: (204, b"")
    heard: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    tokens: list[str | None] = field(default_factory=list)
    url: str = ""
    context: ssl.SSLContext | None = None

    @contextmanager
    def serving(self) -> Iterator[Mes]:
        mes = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                mes.heard.append(body)
                mes.keys.append(self.headers["Idempotency-Key"])
                mes.tokens.append(self.headers["Authorization"])
                status, content = mes.answer(body)
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        if self.context is None:
            self.url = f"http://127.0.0.1:{server.server_port}/hook"
        else:
            server.socket = self.context.wrap_socket(server.socket, server_side=True)
            self.url = f"https://localhost:{server.server_port}/hook"
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            server.shutdown()
            server.server_close()
            thread.join()


@pytest.fixture
def paper(tmp_path, now) -> PaperLine:
    return PaperLine(tmp_path, now)


def caller(paper: PaperLine, name: str, hook: AllowHook | DoneHook) -> Caller:
    identity = ClientIdentity((paper.station.certificate,), paper.station.key)
    place = {"site": "hh1", "line": "l2", "station": "s-07"}
    return Caller(name, hook, identity, paper.pki.trust, sealing(identity, place), paper.clock)


def allow(paper: PaperLine, call: object, on_error: str = "deny", **more: object) -> Caller:
    return caller(paper, "allow", AllowHook.model_validate({"call": call, "on_error": on_error, **more}))


def done(paper: PaperLine, call: object, on_error: str = "queue", **more: object) -> Caller:
    return caller(paper, "done", DoneHook.model_validate({"call": call, "on_error": on_error, **more}))


def run(paper: PaperLine, count: int, *, ledger_type: type[Ledger] = Ledger, **hooks: Caller) -> tuple[Watching, Any]:
    watching = Watching()
    with paper.session(ledger_type) as (line, ledger):
        ready = replace(line, hooks=Hooks(ledger, line.world, **hooks))
        return watching, ready.run(paper.batch(count), slots=1, progress=watching)


def program(tmp_path: Path, source: str) -> list[str]:
    path = tmp_path / "hook.py"
    path.write_text("import json, sys, time\nunit = json.load(sys.stdin)\n" + source)
    return [sys.executable, str(path)]


# --- before -----------------------------------------------------------------------------------------------------------


def deny_the_second(body: dict[str, Any]) -> Answer:
    if body["device_id"] == "sn-0002":
        return 403, b'{"reason": "lot 7 is\\nblocked"}'
    return 200, b'{"allow": true}'


def test_a_unit_that_is_not_allowed_gets_no_certificate(paper):
    with Mes(deny_the_second).serving() as mes:
        watching, stopped = run(paper, 3, allow=allow(paper, mes.url))
    assert stopped is None
    assert watching.ends == [("sn-0001", "pass"), ("sn-0002", "E-POLICY"), ("sn-0003", "pass")]
    assert set(paper.est.holders) == {"sn-0001", "sn-0003"}
    with paper.session() as (_, ledger):
        failure = ledger.unit("sn-0002").failure
        assert failure is not None
        assert failure.text == "the allow hook denies sn-0002: lot 7 is blocked"
        assert ledger.unit("sn-0002").state is State.PLANNED
    assert mes.heard[0] == {
        "event": "allow",
        "site": "hh1",
        "line": "l2",
        "station": "s-07",
        "slot": 1,
        "device_id": "sn-0001",
        "serial": "S0001",
        "model": "sensor",
        "batch": "b1",
        "attempt": 1,
        "attempt_id": mes.heard[0]["attempt_id"],
        "attrs": {},
    }
    assert mes.keys[0] == f'"{mes.heard[0]["attempt_id"]}"'


@pytest.mark.parametrize(
    ("status", "body", "yes"),
    [(200, b'{"allow": false, "reason": "no"}', False), (204, b"", True), (200, b"fine", True), (201, b"{}", True)],
)
def test_what_an_answer_means(paper, status, body, yes):
    with Mes(lambda _: (status, body)).serving() as mes:
        assert allow(paper, mes.url).call("{}", "k").yes is yes


@pytest.mark.parametrize(
    ("status", "body"), [(500, b"broken"), (302, b""), (404, b""), (401, b""), (200, b'{"allow": "yes"}')]
)
def test_what_is_neither_yes_nor_no(paper, status, body):
    with Mes(lambda _: (status, body)).serving() as mes, pytest.raises(HookFailed):
        allow(paper, mes.url).call("{}", "k")


def test_nobody_there_means_no_and_stops_the_line_where_that_is_said(paper):
    watching, stopped = run(paper, 4, allow=allow(paper, "http://127.0.0.1:1/", "deny"))
    assert watching.ends == [("sn-0001", "E-POLICY"), ("sn-0002", "E-POLICY")]
    assert stopped.code is FailureCode.POLICY
    assert "did not answer" in stopped.text
    assert paper.est.holders == {}


def test_nobody_there_means_yes_where_that_is_said_and_the_ledger_tells_of_it(paper):
    watching, _ = run(paper, 2, allow=allow(paper, "http://127.0.0.1:1/", "allow"))
    assert [end for _, end in watching.ends] == ["pass", "pass"]
    with paper.session() as (_, ledger):
        told = [event.facts for event in ledger.events() if event.kind == "allowed-unasked"]
    assert [facts["device_id"] for facts in told] == ["sn-0001", "sn-0002"]


def test_an_answer_by_drops_ends_with_the_time_out(paper):
    def slowly(_body: dict[str, Any]) -> Answer:
        wait.wait(20)
        return 204, b""

    wait = threading.Event()
    with Mes(slowly).serving() as mes:
        try:
            with pytest.raises(HookFailed, match="did not answer"):
                allow(paper, mes.url, timeout="100ms").call("{}", "k")
        finally:
            wait.set()


def test_a_program_is_asked_and_its_words_are_heard(paper, tmp_path):
    source = 'print("ask the foreman")\nsys.exit(unit["device_id"] == "sn-0001")\n'
    watching, _ = run(paper, 2, allow=allow(paper, program(tmp_path, source), timeout="20s"))
    assert watching.ends == [("sn-0001", "E-POLICY"), ("sn-0002", "pass")]
    with paper.session() as (_, ledger):
        failure = ledger.unit("sn-0001").failure
        assert failure is not None
        assert failure.text.endswith("ask the foreman")


@pytest.mark.parametrize(
    ("source", "says"),
    [("sys.exit(3)", "ended with 3"), ("time.sleep(60)", "took longer"), ("print('x' * 999999); sys.exit(9)", "xxx")],
)
def test_a_program_that_does_not_answer_is_neither_yes_nor_no(paper, tmp_path, source, says):
    with pytest.raises(HookFailed, match=says) as caught:
        allow(paper, program(tmp_path, source), timeout="2s").call("{}", "k")
    assert len(str(caught.value)) < 600
    with pytest.raises(HookFailed, match="cannot be run"):
        allow(paper, ["/nowhere/at/all"]).call("{}", "k")


def test_a_token_and_a_signature(paper, tmp_path):
    token = tmp_path / "token"
    token.touch(0o600)
    token.write_text("s3cret\n")
    with Mes().serving() as mes:
        allow(paper, mes.url, token_file=token).call('{"device_id":"sn-1"}', "k")
        allow(paper, mes.url, sign=True).call('{"device_id":"sn-1"}', "k")
        token.chmod(0o644)
        with pytest.raises(HookFailed, match="chmod 600") as caught:
            allow(paper, mes.url, token_file=token).call("{}", "k")
    assert mes.tokens == ["Bearer s3cret", None]
    assert "s3cret" not in str(caught.value)
    statement = unseal(json.dumps(mes.heard[1]).encode(), HOOK, paper.pki.trust)
    assert statement.fields["device_id"] == "sn-1"
    assert json.loads(base64.b64decode(mes.heard[1]["payload"]))["station"] == "s-07"


def test_over_tls_the_station_shows_its_certificate_and_holds_the_other_side_to_its_anchors(tmp_path):
    paper = PaperLine(tmp_path, real_now())
    host = paper.pki.issue("mes", SERVER)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=paper.pki.trust_path)
    context.load_cert_chain(host.files.certificate_path, host.files.key_path)
    context.verify_mode = ssl.CERT_REQUIRED
    with Mes(context=context).serving() as mes:
        assert mes.url.startswith("https://localhost:")
        assert allow(paper, mes.url, timeout="10s").call("{}", "k").yes
        stranger = PaperLine(tmp_path / "other", real_now())
        with pytest.raises(HookFailed, match="did not answer"):
            allow(stranger, mes.url, timeout="10s").call("{}", "k")
    assert len(mes.heard) == 1


# --- after ------------------------------------------------------------------------------------------------------------


def test_every_pass_is_told_once_in_order_and_holds_no_secret(paper):
    with Mes().serving() as mes:
        run(paper, 3, done=done(paper, mes.url, "stop"))
        run(paper, 3, done=done(paper, mes.url, "stop"))
    assert [body["device_id"] for body in mes.heard] == ["sn-0001", "sn-0002", "sn-0003"]
    assert mes.keys == [f'"{body["id"]}"' for body in mes.heard]
    assert len(set(mes.keys)) == 3
    issued = {f"{certificate.serial_number:x}" for certificate in paper.est.issued.values()}
    assert {body["cert"]["serial"] for body in mes.heard} == issued
    assert "PRIVATE" not in json.dumps(mes.heard)
    with paper.session() as (_, ledger):
        assert ledger.pushes_owed() == 0
        assert [event.kind for event in ledger.events()].count("pushed") == 3
        assert {body["ledger"]["head"] for body in mes.heard} == {
            row.recorded.head for row in ledger.units("b1") if row.recorded
        }


def test_a_push_that_is_not_heard_stops_the_line_where_that_is_said(paper):
    with Mes(lambda _: (503, b"shift change")).serving() as mes:
        _, stopped = run(paper, 3, done=done(paper, mes.url, "stop"))
        assert stopped.code.exit_code == 9
        assert "503: shift change" in stopped.text
        assert set(paper.est.holders) == {"sn-0001"}
        _, stopped = run(paper, 3, done=done(paper, mes.url, "stop"))  # told first, before any unit
        assert set(paper.est.holders) == {"sn-0001"}
        mes.answer = lambda _: (200, b"")
        watching, stopped = run(paper, 3, done=done(paper, mes.url, "stop"))
    assert stopped is None
    assert len(watching.ends) == 2
    assert len({key for key in mes.keys if mes.heard[mes.keys.index(key)]["device_id"] == "sn-0001"}) == 1


def test_a_push_that_is_not_heard_is_owed_and_told_later_in_order(paper):
    away = done(paper, "http://127.0.0.1:1/", "queue")
    watching, stopped = run(paper, 3, done=away)
    assert stopped is None
    assert [end for _, end in watching.ends] == ["pass"] * 3
    with paper.session() as (line, ledger):
        with Telling(Hooks(ledger, line.world, done=away)) as telling:
            pass
        assert telling.reason is not None
        assert ledger.pushes_owed() == 3
        assert ledger.pushes(1)[0].tries == 1
        with Mes(lambda body: (500 if body["device_id"] == "sn-0002" else 200, b"")).serving() as mes:
            hooks = Hooks(ledger, line.world, done=done(paper, mes.url))
            assert "500" in str(hooks.tell())
            assert [body["device_id"] for body in mes.heard] == ["sn-0001", "sn-0002"]
            mes.answer = lambda _: (200, b"")
            with Telling(hooks):
                pass
            assert [body["device_id"] for body in mes.heard][1:] == ["sn-0002", "sn-0002", "sn-0003"]
            assert mes.heard[1] == mes.heard[2]
        ledger.verify_chain()


class Killed(BaseException):
    """The process is gone."""


def test_killed_between_hearing_and_writing_down_it_is_told_again_under_the_same_key(paper):
    class Dying(Ledger):
        def settle_push(self, *_: object) -> None:
            raise Killed

    with Mes().serving() as mes:
        with pytest.raises(Killed):
            run(paper, 1, ledger_type=Dying, done=done(paper, mes.url, "stop"))
        with paper.session() as (line, ledger):
            assert Hooks(ledger, line.world, done=done(paper, mes.url)).tell() is None
            assert ledger.pushes_owed() == 0
    assert mes.heard[0] == mes.heard[1]
    assert mes.keys[0] == mes.keys[1]


# --- settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hook", "column"),
    [
        ('[hooks.allow]\ncall = "https://mes.example/a"', "hooks.allow.on_error"),
        ('[hooks.done]\ncall = "https://mes.example/a"\non_error = "deny"', "hooks.done.on_error"),
        ('[hooks.allow]\ncall = "http://mes.example/a"\non_error = "deny"', "hooks.allow.call"),
        ('[hooks.allow]\ncall = "https://u:p@mes.example/a"\non_error = "deny"', "hooks.allow.call"),
        ('[hooks.allow]\ncall = []\non_error = "deny"', "hooks.allow.call"),
    ],
)
def test_a_hook_says_what_its_silence_means(tmp_path, hook, column):
    path = tmp_path / "line.toml"
    fixed = (
        '[site]\nid = "h"\nline = "l"\nstation = "s"\n[est]\nurl = "https://x"\ntrust = "t"\ncert = "c"\nkey = "k"\n'
    )
    path.write_text(fixed + hook + "\n")
    with pytest.raises(InputInvalid) as caught:
        load_settings(path)
    assert any(found.column.startswith(column) for found in caught.value.findings)
    path.write_text(fixed + '[hooks.allow]\ncall = ["./ask"]\ntoken_file = "token"\non_error = "allow"\n')
    found = load_settings(path).hooks.allow
    assert found is not None
    assert found.token_file == tmp_path / "token"
