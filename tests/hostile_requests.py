"""Hostile requests by number: a seed and a number are one request, spoiled at one layer and sound in all others.

Layers: `sound` nothing is spoiled; `octets` the request as it leaves the client; `http` its head and framing; `base64`
its body; `der` the CSR, with a signature that no longer fits; `signed` the CSR's content, signed again; `extensions`
what is wished for, signed; `names` subject and alternative names, signed; `certificate` what the client shows in TLS,
signed by a trusted maker, or by nobody.

The octets repeat on every home but for the randomised signatures of ML-DSA; what homes issued themselves differs.
"""

from __future__ import annotations

import base64
import math
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, mldsa, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from OpenSSL import crypto

from estserver.enroll import Request
from estserver.identity.credentials import verifier_for_generated
from estserver.model import BasicCredentials, Operation, Peer
from estserver.records import CredentialRecord
from estserver.serving.peer import TlsPeer
from tests import csr_maker, http_mutations, mutations
from tests.csr_maker import CN, bits, sequence, tlv
from tests.est_server import EST, Holder, Home, today
from tests.http_mutations import Message
from tests.makers import Maker
from tests.plain_front import tls_peer
from tests.sound_extensions import SOUND_EXTENSIONS

LAYERS: Mapping[str, int] = {
    "sound": 6,
    "octets": 15,
    "http": 26,
    "base64": 10,
    "der": 18,
    "signed": 8,
    "extensions": 6,
    "names": 6,
    "certificate": 5,
}
"""How many of a hundred requests each layer gets."""
SOUND_CSRS = 100
VECTORS = Path(__file__).parent / "vectors"
SECRET, STATION, DEVICE, MAKER = "a-secret-for-all-to-know", "line-1", "sn-0", "maker"
LABELS = ("", "", "", "device", "gateway", "workload", "server", "nowhere")
NAMES = ("dns:*.plant.example", "dns:*.*.plant.example", "uri:urn:*", "ip:10.0.0.0/8", "email:*@plant.example")


# --- keys -----------------------------------------------------------------------------------------------------------


def _rsa_key(rng: random.Random) -> rsa.RSAPrivateKey:
    """An RSA key that a seed repeats, which no library makes."""
    small = math.prod(n for n in range(3, 2000) if all(n % q for q in range(2, math.isqrt(n) + 1)))

    def prime() -> int:
        while True:
            found = rng.getrandbits(1024) | 3 << 1022 | 1
            if math.gcd(found, small) == 1 and pow(2, found - 1, found) == 1 and (found - 1) % 65537:
                return found

    p, q = prime(), prime()
    d = pow(65537, -1, (p - 1) * (q - 1))
    public = rsa.RSAPublicNumbers(65537, p * q)
    return rsa.RSAPrivateNumbers(p, q, d, d % (p - 1), d % (q - 1), pow(q, -1, p), public).private_key()


def _ec_key(rng: random.Random, curve: type[ec.EllipticCurve] = ec.SECP256R1) -> ec.EllipticCurvePrivateKey:
    return ec.derive_private_key(rng.getrandbits(220) + 1, curve())


def corpus_keys() -> dict[str, Any]:
    """One key of every kind, the same every time."""
    rng = random.Random("keys")
    return {
        **{curve.name: _ec_key(rng, curve) for curve in (ec.SECP256R1, ec.SECP384R1, ec.SECP521R1, ec.SECP256K1)},
        "RSA": _rsa_key(rng),
        "Ed25519": ed25519.Ed25519PrivateKey.from_private_bytes(rng.randbytes(32)),
        "Ed448": ed448.Ed448PrivateKey.from_private_bytes(rng.randbytes(57)),
        "ML-DSA-44": mldsa.MLDSA44PrivateKey.from_seed_bytes(rng.randbytes(32)),
        "ML-DSA-65": mldsa.MLDSA65PrivateKey.from_seed_bytes(rng.randbytes(32)),
        "ML-DSA-87": mldsa.MLDSA87PrivateKey.from_seed_bytes(rng.randbytes(32)),
    }


def signed(key: Any, info: bytes) -> bytes:
    """Put a signature under a CertificationRequestInfo, whatever it is; ECDSA without its randomness."""
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        algorithm, value = csr_maker.signature(key, info)
        return sequence(info, algorithm, bits(value))
    value = key.sign(info, ec.ECDSA(hashes.SHA256(), deterministic_signing=True))
    return sequence(info, _ECDSA_SHA256, bits(value))


_ECDSA_SHA256 = sequence(csr_maker.oid("1.2.840.10045.4.3.2"))


# --- the home -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class World:
    """A home with everybody in it who may ask for something."""

    home: Home
    holders: Mapping[str, Holder]
    maker: Maker

    @cached_property
    def peers(self) -> dict[str, TlsPeer]:
        """What each of them shows in TLS."""
        return {"nobody": tls_peer()} | {
            name: tls_peer(_der(holder.certificate), tuple(map(_der, holder.chain)))
            for name, holder in self.holders.items()
        }


LIMITS_OUT_OF_THE_WAY = "\n[limits]\n" + "".join(
    f'{name}_rate = "100000/10s"\n' for name in ("station", "credential", "device", "stranger", "guess")
)
"""The highest rates that the configuration takes: what this looks for is behind them."""


def populate(home: Home) -> World:
    """Add credentials, a device, a station, a maker and a stranger to a founded home."""
    home.configure(LIMITS_OUT_OF_THE_WAY)
    pepper = (home.path / "private" / "credential.key").read_bytes()
    verifier = verifier_for_generated(SECRET.encode(), pepper)
    maker = Maker("Fuzz Works", _ec_key(random.Random("maker")))
    with home.inventory() as inventory:
        for label in {*LABELS, "station"}:
            record = CredentialRecord(
                f"fuzz-{label}", "hmac-sha256", verifier, b"", label, ("*",), NAMES, None, 0, today(), None
            )
            inventory.credential_add(record, "operator:fuzz")
    home.anchor(MAKER, maker.certificate, "t-{serial}", "t-*")
    stranger = Maker("Stranger", _ec_key(random.Random("stranger")))
    holders = {
        "device": _enrol(home, DEVICE, ""),
        "station": _enrol(home, STATION, "station"),
        "idevid": maker.idevid("1", key=_ec_key(random.Random("idevid"))),
        "stranger": stranger.idevid("1", key=_ec_key(random.Random("strange"))),
    }
    home.station(STATION, "*")
    return World(home, holders, maker)


def _enrol(home: Home, name: str, label: str) -> Holder:
    key = _ec_key(random.Random(name))
    body = base64.b64encode(csr_maker.request(key, name))
    credentials = BasicCredentials(f"fuzz-{label}", SECRET.encode())
    with home.enrollment(today) as enrollment:
        issued = enrollment.enroll(Request(Operation.SIMPLEENROLL, label, body, Peer("127.0.0.1"), credentials))
    return Holder(key, _certificate(issued.certificate), (home.issuing,))


def _der(certificate: Any) -> bytes:
    return bytes(certificate.public_bytes(Encoding.DER))


def _certificate(der: bytes) -> Any:
    return crypto.load_certificate(crypto.FILETYPE_ASN1, der).to_cryptography()


# --- requests -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Attempt:
    """One hostile request: its octets, as the server gets to read them, and who sends it."""

    number: int
    layer: str
    client: str
    peer: TlsPeer
    pieces: tuple[bytes, ...]


class Attempts:
    """All hostile requests of a seed, by number."""

    def __init__(self, world: World, seed: int) -> None:
        self.world = world
        self._seed = seed
        self._keys = corpus_keys()
        self._kinds = tuple(self._keys)
        self._csrs: dict[tuple[str, int], bytes] = {}
        self._vectors = [path.read_bytes() for path in sorted(VECTORS.glob("*.der"))]
        self._layers = [name for name, share in LAYERS.items() for _ in range(share)]

    def attempt(self, number: int) -> Attempt:
        """Make one request."""
        rng = random.Random(f"{self._seed}:{number}")
        layer = rng.choice(self._layers)
        client = rng.choice(("credential",) * 6 + ("nobody", "device", "device", "station", "idevid", "stranger"))
        if layer == "certificate":
            client = rng.choice(("idevid", "device", "stranger"))
        message, peer = self._message(rng, layer, client, number), self.world.peers.get(client, tls_peer())
        if layer == "certificate":
            peer = self._spoiled_peer(rng, client, peer)
        octets = http_mutations.spoiled(rng, message) if layer == "http" else message.write()
        if layer == "octets":
            octets = mutations.octets(rng, octets, times=4)
        return Attempt(number, layer, client, peer, tuple(_cut(rng, octets)))

    def _message(self, rng: random.Random, layer: str, client: str, number: int) -> Message:
        reading = layer in ("sound", "http", "octets") and rng.random() < 0.15
        operation = rng.choice(("cacerts", "csrattrs")) if reading else self._operation(rng, client)
        label = rng.choice(LABELS) if client in ("credential", "nobody") or reading else ""
        headers = [("Host", "localhost"), ("User-Agent", "curl/8"), ("Accept", "*/*")]
        if client == "credential":
            token = base64.b64encode(f"fuzz-{label}:{SECRET}".encode()).decode()
            headers.append(("Authorization", f"Basic {token}"))
        target = f"{EST}/{label}/{operation}" if label else f"{EST}/{operation}"
        if reading:
            return Message("GET", target, headers)
        body = self._body(rng, layer, client, number)
        message = Message("POST", target, [*headers, ("Content-Type", "application/pkcs10")], body)
        if rng.random() < 0.2:
            message.chunks = http_mutations.chunked(body, rng.choice((100, 1000, 4096)))
        return message

    def _operation(self, rng: random.Random, client: str) -> str:
        if rng.random() < 0.02:
            return rng.choice(("fullcmc", "serverkeygen", "simplereenrol", "cacerts"))
        renewing = 0.8 if client == "device" else 0.2
        return "simplereenroll" if rng.random() < renewing else "simpleenroll"

    def _body(self, rng: random.Random, layer: str, client: str, number: int) -> bytes:
        if layer in ("octets", "http", "base64", "der"):
            der = self._sound_csr(client, rng.randrange(SOUND_CSRS))
        else:
            key = self._key(rng, layer)
            info = self._info(rng, layer, client, number, key)
            der = signed(key, mutations.der(rng, info) if layer == "signed" else info)
        if layer == "der":
            der = mutations.der(rng, rng.choice(self._vectors) if rng.random() < 0.1 else der)
        if layer == "base64":
            return mutations.base64_text(rng, der)
        return base64.b64encode(der) + b"\n"

    def _sound_csr(self, client: str, number: int) -> bytes:
        """One of a few sound requests of a client, for what is spoiled around it or in it afterwards."""
        found = self._csrs.get((client, number))
        if found is None:
            rng = random.Random(f"{self._seed}:{client}:{number}")
            key = self._key(rng, "der")
            found = self._csrs[client, number] = signed(key, self._info(rng, "der", client, number, key))
        return found

    def _key(self, rng: random.Random, layer: str) -> Any:
        """A key of every kind; where a certificate can come of it, mostly one that nobody has had."""
        if layer != "der" and rng.random() < 0.8:
            return _ec_key(rng)
        return self._keys[rng.choice(self._kinds)]

    def _info(self, rng: random.Random, layer: str, client: str, number: int, key: Any) -> bytes:
        device = {"device": DEVICE, "idevid": "t-1", "stranger": "t-1"}.get(client, f"sn-{number}")
        extensions, subject = self._extensions(rng, device), [(CN, device)]
        extensions += _odd_extensions(rng) if layer == "extensions" else []
        tag = rng.choice((csr_maker.UTF8, csr_maker.UTF8, csr_maker.PRINTABLE, csr_maker.BMP, csr_maker.T61))
        if layer != "names":
            name = csr_maker.name(subject, tag)
        else:
            name = _odd_subject(rng, device)
            extensions += [_odd_names(rng)] if rng.random() < 0.6 else []
        attributes = [csr_maker.extension_request(*extensions)] if extensions else []
        if rng.random() < 0.1:
            attributes.append(csr_maker.challenge(rng.choice((tls_peer().tls_exporter or b"", b"other", ""))))
        return csr_maker.info(name, csr_maker.spki(key), *attributes)

    def _extensions(self, rng: random.Random, device: str) -> list[bytes]:
        """Wishes that are sound, mostly ones that the profiles give."""
        every = (
            csr_maker.known(csr_maker.usage("digital_signature")),
            csr_maker.known(csr_maker.purposes("1.3.6.1.5.5.7.3.2")),
            csr_maker.known(csr_maker.names(f"uri:urn:device:{device}")),
            csr_maker.known(csr_maker.names("dns:a.plant.example", "ip:10.1.2.3")),
            csr_maker.extension("2.5.29.19", sequence()),
            csr_maker.extension("2.5.29.14", tlv(0x04, bytes(20))),
            csr_maker.extension("2.5.29.31", sequence()),
        )
        return [wish for wish in every if rng.random() < 0.12]

    def _spoiled_peer(self, rng: random.Random, client: str, peer: TlsPeer) -> TlsPeer:
        """Another certificate than it got; one that TLS would not have let in is replaced by the sound one."""
        assert peer.certificate is not None
        tbs, *_ = csr_maker.values(peer.certificate)
        certificate = mutations.der(rng, peer.certificate)
        if client == "idevid" and rng.random() < 0.8:
            certificate = self.world.maker.sign(mutations.der(rng, tbs, times=1))
        chain = tuple(mutations.der(rng, der) for der in (*peer.chain, _der(self.world.maker.certificate)))
        sent = certificate if _readable(certificate) else peer.certificate
        return tls_peer(sent, tuple(der for der in chain if _readable(der)) * rng.choice((0, 1, 5)))


def _readable(certificate: bytes) -> bool:
    """Whether OpenSSL reads it, without which there is no handshake."""
    try:
        found = crypto.load_certificate(crypto.FILETYPE_ASN1, certificate)
        return crypto.dump_certificate(crypto.FILETYPE_ASN1, found) == certificate
    except crypto.Error:
        return False


def _odd_subject(rng: random.Random, device: str) -> bytes:
    kinds = (CN, csr_maker.SERIAL_NUMBER, csr_maker.ORGANIZATION, "2.5.4.6", "2.5.4.7", "0.9.2342.19200300.100.1.25")
    tags = (0x0C, 0x13, 0x14, 0x16, 0x1E, 0x1C, 0x04)
    rdns = [csr_maker.set_of(sequence(csr_maker.oid(CN), csr_maker.text(device)))] if rng.random() < 0.7 else []
    for _ in range(rng.choice((0, 1, 1, 2, 40))):
        tag = rng.choice(tags)
        text = mutations.name(rng, device).encode(rng.choice(("utf-8", "utf-16-be", "latin-1")), "replace")
        rdns.append(csr_maker.set_of(sequence(csr_maker.oid(rng.choice(kinds)), tlv(tag, text))))
    return sequence(*rdns)


def _odd_extensions(rng: random.Random) -> list[bytes]:
    """One or two extensions that the library reads, with values that are nearly sound."""
    chosen = rng.choices(SOUND_EXTENSIONS, k=rng.choice((1, 1, 2)))
    return [csr_maker.extension(oid, mutations.der(rng, value, times=2)) for oid, value in chosen]


def _odd_names(rng: random.Random) -> bytes:
    sound = {0x82: "a.plant.example", 0x86: "urn:x:a", 0x81: "a@plant.example", 0x87: "\x0a\x01\x02\x03", 0x88: "*\x03"}
    found = []
    for _ in range(rng.choice((1, 1, 2, 5, 100, 1000))):
        tag = rng.choice((*sound, 0x80, 0xA0, 0xA4, 0x83, 0x85, 0xA3, 0x89))
        value = mutations.name(rng, sound.get(tag, "x"))[:200] if rng.random() < 0.7 else sound.get(tag, "")
        found.append(tlv(tag, value.encode("utf-8", "replace")))
    return csr_maker.extension("2.5.29.17", sequence(*found))


def _cut(rng: random.Random, octets: bytes) -> Iterator[bytes]:
    """Give the octets whole, or as the network might."""
    if rng.random() < 0.7:
        yield octets
        return
    at = 0
    while at < len(octets):
        size = rng.choice((1, 2, 50, 1000, 16_384))
        yield octets[at : at + size]
        at += size
