"""The clients of the soak: stations and devices that do everything the server offers, and do not give up.

Each is a process that does one thing after the other until it is told to stop. A connection that is cut before its
answer says nothing about what was done, so the same request is asked again; when that happened is noted, and whoever
evaluates the run has to find a reason for it. Everything asked for and everything answered is noted as well.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
import multiprocessing
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection as Pipe
from typing import NamedTuple, Self

from clients import SPKI, TLS12, TLS13, Identity, Wire, certificate_in, csr, post, station_of, tls_context
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from OpenSSL import SSL
from rig import Home, one_time_passwords

GROUP = "X25519"
GIVE_UP_SECONDS = 60
BATCH = 40
"""Enrolments of a station on one kept connection and then on new ones; passwords made at once."""


@dataclass(slots=True)
class Tally:
    """What one client, or all of them, did and saw.

    Attributes:
        did: how often what.
        answers: how often each status.
        asked: device by the SHA-256 of each key that a certificate was asked for and may be had.
        denied: keys for which there may be no certificate.
        held: key by the SHA-256 of each certificate received.
        cut_at: when a connection ended without an answer, by the monotonic clock.
        seconds: of each answered request, from connect or the first octet on a kept connection.
        problems: what should not have been.
    """

    did: Counter[str] = field(default_factory=Counter)
    answers: Counter[int] = field(default_factory=Counter)
    asked: dict[str, str] = field(default_factory=dict)
    denied: set[str] = field(default_factory=set)
    held: dict[str, str] = field(default_factory=dict)
    cut_at: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def add(self, other: Tally) -> None:
        """Take in what another saw."""
        self.did += other.did
        self.answers += other.answers
        self.asked |= other.asked
        self.denied |= other.denied
        self.held |= other.held
        self.cut_at += other.cut_at
        self.seconds += other.seconds
        self.problems += other.problems


class Wanted(NamedTuple):
    """One request, which is signed anew each time it is sent."""

    operation: str
    device: str
    key: ec.EllipticCurvePrivateKey
    fields: bytes = b""
    status: int = 200
    names: x509.SubjectAlternativeName | None = None

    @property
    def spki(self) -> str:
        """Return the hash that the key is known by."""
        return hashlib.sha256(self.key.public_key().public_bytes(*SPKI)).hexdigest()

    def octets(self) -> bytes:
        """Sign it and write it out."""
        return post(self.operation, csr(self.key, self.device, self.names), self.fields)


class Client:
    """What stations and devices have in common: asking until there is an answer."""

    def __init__(self, home: Home, port: int, number: int, stopped: Callable[[], bool]) -> None:
        self.home, self.tally = home, Tally()
        self._port, self._number, self._stopped = port, number, stopped
        self._source = f"127.0.{number + 1}.1"
        self._numbers = itertools.count()
        self._rng = random.Random(number)
        self._wire: Wire | None = None

    def new_name(self, stem: str) -> str:
        """Return a device id that nobody has had."""
        return f"{stem}-{self._number}-{next(self._numbers):06d}"

    def ask(self, wanted: Wanted, context: SSL.Context, *, keep: bool = False) -> x509.Certificate | None:
        """Ask until answered; return the certificate, or None where another answer was wanted."""
        if wanted.status == 200:
            self.tally.asked[wanted.spki] = wanted.device
        else:
            self.tally.denied.add(wanted.spki)
        answer = self._answer(wanted, context, keep=keep)
        status = int(answer[9:12])
        if status != wanted.status:
            self.tally.problems.append(f"{wanted.device}: {status} instead of {wanted.status}: {answer[-200:]!r}")
        return self._received(wanted, answer) if status == 200 else None

    def _answer(self, wanted: Wanted, context: SSL.Context, *, keep: bool) -> bytes:
        give_up_at = time.monotonic() + GIVE_UP_SECONDS
        while time.monotonic() < give_up_at:
            begun = time.monotonic()
            try:
                wire = self._wire or Wire(context, self._port, self._source)
                self._wire = wire
                answer = wire.ask(wanted.octets())
            except (SSL.Error, OSError):
                self.tally.cut_at.append(time.monotonic())
                self.hang_up()
                time.sleep(0.02)
                continue
            self.tally.seconds.append(time.monotonic() - begun)
            self.tally.answers[int(answer[9:12])] += 1
            if not keep or b"\r\nConnection: close" in answer:
                self.hang_up()
            if not answer.startswith((b"HTTP/1.1 503 ", b"HTTP/1.1 429 ")):
                return answer
            reason = answer.partition(b"\r\n\r\n")[2].decode().splitlines()[0]
            self.tally.did[f"told to come back: {reason}"] += 1
            time.sleep(0.1)
        raise TimeoutError(f"{wanted.device} got no answer in {GIVE_UP_SECONDS} s")

    def hang_up(self) -> None:
        """End the kept connection."""
        if self._wire is not None:
            self._wire.close()
            self._wire = None

    def throw_away(self, wanted: Wanted, context: SSL.Context) -> None:
        """Ask, and be gone before the answer; now and then before the request is whole."""
        self.tally.asked[wanted.spki] = wanted.device
        octets = wanted.octets()
        try:
            wire = Wire(context, self._port, self._source)
            wire.tls.sendall(octets[: self._rng.choice((len(octets), len(octets), len(octets) - 9))])
            time.sleep(self._rng.choice((0, 0.02, 0.2)))
        except (SSL.Error, OSError):
            self.tally.cut_at.append(time.monotonic())
            return
        wire.socket.close()
        self.tally.did["answers thrown away"] += 1

    def _received(self, wanted: Wanted, answer: bytes) -> x509.Certificate:
        certificate = certificate_in(answer)
        name = certificate.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)[0].value
        key = hashlib.sha256(certificate.public_key().public_bytes(*SPKI)).hexdigest()
        if (name, key) != (wanted.device, wanted.spki):
            self.tally.problems.append(f"{wanted.device}: a certificate for something else")
        self.tally.held[hashlib.sha256(certificate.public_bytes(Encoding.DER)).hexdigest()] = wanted.spki
        return certificate


class Station(Client):
    """Enrols new devices, many on one connection, then each on its own."""

    def run(self) -> None:
        """Go on until told to stop."""
        contexts = [tls_context(self.home, tls, GROUP, station_of(self.home)) for tls in (TLS13, TLS12)]
        while not self._stopped():
            for keep in (True, False):
                context = self._rng.choice(contexts)
                for _ in range(BATCH):
                    wanted = Wanted("simpleenroll", self.new_name("st"), ec.generate_private_key(ec.SECP256R1()))
                    self.ask(wanted, context, keep=keep)
                    self.tally.did["enrolled by a station, kept" if keep else "enrolled by a station, new"] += 1
                self.hang_up()


class Device(Client):
    """Lives one device after the other: enrols by its password, renews itself, repeats, is refused."""

    def run(self) -> None:
        """Go on until told to stop."""
        self._nobody = {tls: tls_context(self.home, tls, GROUP) for tls in (TLS12, TLS13)}
        self._above = x509.load_pem_x509_certificates((self.home.path / "issuing.pem").read_bytes())
        passwords = self._passwords()
        while not self._stopped():
            device, password = next(passwords)
            self._live(device, password)

    def _passwords(self) -> Iterator[tuple[str, str]]:
        while True:
            yield from one_time_passwords(self.home, [self.new_name("sn") for _ in range(BATCH)]).items()

    def _live(self, device: str, password: str) -> None:
        tls, other = self._rng.sample((TLS12, TLS13), 2)
        fields = basic(device, password)
        self._be_refused(device, fields, self._nobody[other])
        wanted = Wanted("simpleenroll", device, ec.generate_private_key(ec.SECP256R1()), fields)
        certificate = self._obtain(wanted, self._nobody[tls])
        self.tally.did["enrolled by one-time password"] += 1
        for version in (other, tls, other):
            if certificate is None or self._stopped():
                return
            context = tls_context(self.home, version, GROUP, Identity(wanted.key, [certificate, *self._above]))
            wanted = Wanted("simplereenroll", device, ec.generate_private_key(ec.SECP256R1()))
            certificate = self._obtain(wanted, context)
            self.tally.did[f"renewed over TLS 1.{2 if version == TLS12 else 3}"] += 1

    def _obtain(self, wanted: Wanted, context: SSL.Context) -> x509.Certificate | None:
        """Get a certificate; sometimes after an answer was lost, sometimes twice, which must be the same."""
        if self._rng.random() < 0.2:
            self.throw_away(wanted, context)
        certificate = self.ask(wanted, context)
        if self._rng.random() < 0.3:
            self.tally.did["repeats"] += 1
            if self.ask(wanted, context) != certificate:
                self.tally.problems.append(f"{wanted.device}: a repeat got other bytes")
        return certificate

    def _be_refused(self, device: str, fields: bytes, context: SSL.Context) -> None:
        """Sometimes: a wrong password, another device's name, a key that the profile does not allow."""
        key = ec.generate_private_key(ec.SECP256R1())
        wrong = {
            "a wrong password": Wanted("simpleenroll", device, key, basic(device, "wrong"), 401),
            "another device's name": Wanted("simpleenroll", f"{device}-not", key, fields, 403),
            "a curve that is not allowed": Wanted(
                "simpleenroll", device, ec.generate_private_key(ec.SECP256K1()), fields, 400
            ),
        }
        for what, wanted in wrong.items():
            if self._rng.random() < 0.1:
                self.ask(wanted, context)
                self.tally.did[f"refused: {what}"] += 1


def basic(device: str, password: str) -> bytes:
    """Write the head's line for a device's own one-time password."""
    return b"Authorization: Basic %s\r\n" % base64.b64encode(f"for-{device}:{password}".encode())


# --- processes ------------------------------------------------------------------------------------------------------


class Crowd:
    """Client processes, while the `with` block runs; `tally` is of them all, afterwards."""

    def __init__(self, home: Home, port: int, stations: int, devices: int) -> None:
        fork = multiprocessing.get_context("fork")
        self.tally = Tally()
        self._pipes: list[Pipe] = []
        kinds: list[type[Station | Device]] = [Station] * stations + [Device] * devices
        for number, kind in enumerate(kinds):
            ours, theirs = fork.Pipe()
            fork.Process(target=_client, args=(kind, home, port, number, theirs), daemon=True).start()
            self._pipes.append(ours)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for pipe in self._pipes:
            pipe.send("stop")
        for pipe in self._pipes:
            self.tally.add(pipe.recv())

    def broken(self) -> bool:
        """Tell whether a client ended before its time."""
        return any(pipe.poll() for pipe in self._pipes)


def _client(kind: type[Station | Device], home: Home, port: int, number: int, pipe: Pipe) -> None:
    client = kind(home, port, number, pipe.poll)
    try:
        client.run()
    except Exception as error:  # noqa: BLE001  (whatever it is, the run has failed)
        client.tally.problems.append(f"a client ended: {error!r}")
    pipe.send(client.tally)
