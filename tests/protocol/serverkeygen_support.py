"""A home whose labels make keys, what asks for one, and what reads the answer with other programs than ours."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from dataclasses import replace
from email import policy
from email.parser import BytesParser
from pathlib import Path
from typing import Any

from asn1crypto import cms
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import x25519
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_der_private_key
from cryptography.hazmat.primitives.serialization.pkcs7 import load_der_pkcs7_certificates

from estserver.csr import spki_hash
from estserver.enroll import Request
from estserver.model import BasicCredentials, Operation, Peer
from tests import csr_maker
from tests.csr_maker import base64_lines, new_key, oid, request, sequence, spki, tlv, values
from tests.est_server import (
    CERTS_ONLY,
    Answer,
    Est,
    Holder,
    Home,
    found_home,
    fresh_id,
    today,
)

VECTORS = Path(__file__).parents[1] / "vectors"
SMIME_CAPABILITIES, DECRYPT_KEY_ID, ASYMMETRIC_ID = (
    "1.2.840.113549.1.9.15",
    "1.2.840.113549.1.9.16.2.37",
    "1.2.840.113549.1.9.16.2.54",
)
WRAP128, WRAP256, CBC128, CBC256 = (f"2.16.840.1.101.3.4.1.{arc}" for arc in (5, 45, 2, 42))
RSA, OAEP, ECDH = "1.2.840.113549.1.1.1", "1.2.840.113549.1.1.7", "1.3.132.1.11.1"
KEK_ID, KEK = bytes.fromhex("c0ffee01"), bytes(range(32))
PEER = Peer("192.0.2.1", "TLSv1.3", cipher="TLS_AES_256_GCM_SHA384")
SEALED = "application/pkcs7-mime; smime-type=server-generated-key"

LABELS = """
[labels.made]
profile = "device"
ca = "acme"
serverkeygen = "on"
decryption_keys = "private/decryption.keys"

[labels.sealed]
profile = "device"
ca = "acme"
serverkeygen = "encrypted-only"

[labels.bound]
profile = "device"
ca = "acme"
serverkeygen = "on"
channel_binding = "required"

[labels.p384]
profile = "p384"
ca = "acme"
serverkeygen = "on"

[labels.agreement]
profile = "agreement"
ca = "acme"
"""


def keygen_home(directory: Path) -> Home:
    """A home with a label for every way of making keys."""
    home = found_home(directory)
    profiles = home.path / "profiles"
    device = (profiles / "device.toml").read_text("utf-8")
    types = device[device.index("key_types") : device.index("rsa_bits")]
    (profiles / "p384.toml").write_text(device.replace(types, 'key_types = ["P-384"]\n'), "utf-8")
    agreement = device.replace(
        'key_usage = ["digital_signature"]', 'key_usage = ["digital_signature", "key_agreement"]'
    )
    (profiles / "agreement.toml").write_text(agreement, "utf-8")
    file = home.path / "private" / "decryption.keys"
    file.touch(0o600)
    file.write_text(f"# ID KEY\n{KEK_ID.hex()} {KEK.hex()}\n")
    home.configure(LABELS)
    return home


# --- what is asked, and what came ------------------------------------------------------------------------------------


def capabilities(*listed: str | tuple[str, str]) -> bytes:
    rows = [(one,) if isinstance(one, str) else one for one in listed]
    return csr_maker.attribute(
        SMIME_CAPABILITIES, sequence(*(sequence(oid(row[0]), *(sequence(oid(p)) for p in row[1:])) for row in rows))
    )


def shared(key_id: bytes = KEK_ID) -> bytes:
    return csr_maker.attribute(DECRYPT_KEY_ID, tlv(0x04, key_id))


def to_certificate(name: bytes) -> bytes:
    return csr_maker.attribute(ASYMMETRIC_ID, tlv(0x04, name))


def ski(certificate: x509.Certificate) -> bytes:
    return certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest


def ask(est: Est, csr: bytes | Callable[[bytes], bytes], **how: Any) -> Answer:
    how = {"label": "made", **how}
    return est.enroll(csr, operation="serverkeygen", **how)


def parts(answer: Answer) -> list[tuple[str, bytes]]:
    """Content type and DER of each part, as a MIME parser that is not ours reads them."""
    assert answer.status == 200, (answer.status, answer.text)
    head = f"Content-Type: {answer['Content-Type']}\r\n\r\n".encode()
    message = BytesParser(policy=policy.HTTP).parsebytes(head + answer.body)
    assert not message.defects
    found = list(message.iter_parts())
    assert all(part["Content-Transfer-Encoding"] == "base64" for part in found)
    return [(str(part["Content-Type"]), part.get_payload(decode=True)) for part in found]


def delivered(answer: Answer) -> tuple[str, bytes, x509.Certificate]:
    (kind, key), (certs, bag) = parts(answer)
    assert certs == CERTS_ONLY.replace("=certs-only", '="certs-only"') or certs == CERTS_ONLY
    (certificate,) = load_der_pkcs7_certificates(bag)
    return kind, key, certificate


def in_clear(answer: Answer) -> tuple[Any, x509.Certificate]:
    kind, der, certificate = delivered(answer)
    assert kind == "application/pkcs8"
    key = load_der_private_key(der, None)
    assert spki(key) == spki(certificate.public_key())
    return key, certificate


def openssl(*words: str | Path, data: bytes = b"") -> bytes:
    done = subprocess.run(["openssl", *map(str, words)], input=data, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


def as_content_info(signed_data: bytes) -> bytes:
    return sequence(oid("1.2.840.113549.1.7.2"), tlv(0xA0, signed_data))


def opened(est: Est, answer: Answer, *how: str | Path) -> tuple[Any, x509.Certificate, cms.EnvelopedData]:
    """The key, as `openssl cms` decrypts it and verifies who made it (S-K11)."""
    kind, der, certificate = delivered(answer)
    assert kind.replace('"', "") == SEALED
    content = cms.ContentInfo.load(der, strict=True)
    assert content["content_type"].native == "enveloped_data"
    inner = content["content"]["encrypted_content_info"]
    assert inner["content_type"].native == "signed_data"  # openssl does not look
    signed = openssl("cms", "-decrypt", "-inform", "DER", "-binary", *how, data=der)
    trust = ("-CAfile", est.home.path / "root.pem", "-purpose", "any")
    package = openssl("cms", "-verify", "-inform", "DER", "-binary", *trust, data=as_content_info(signed))
    checked = cms.SignedData.load(signed, strict=True)
    assert checked["version"].native == "v3"
    assert checked["encap_content_info"]["content_type"].dotted == "2.16.840.1.101.2.1.2.78.5"
    (one,) = values(package)  # a SEQUENCE OF around the PKCS#8 (RFC 5958)
    key = load_der_private_key(one, None)
    assert spki(key) == spki(certificate.public_key())
    return key, certificate, content["content"]


def key_file(key: Any, path: Path) -> Path:
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return path


def certificate_file(certificate: x509.Certificate, path: Path) -> Path:
    path.write_bytes(certificate.public_bytes(Encoding.PEM))
    return path


def agreeing(est: Est, key: x25519.X25519PrivateKey) -> Holder:
    """A device whose certificate is for a key that cannot sign; PKCS#10 brings none (RFC 9883 would)."""
    device = fresh_id()
    name, secret = est.home.credential(device, label="agreement")
    asked = Request(
        Operation.SIMPLEENROLL,
        "agreement",
        base64_lines(request(new_key(), device)),
        PEER,
        BasicCredentials(name, secret.encode()),
    )
    with est.home.enrollment(today) as enrollment:
        admission = enrollment.admit(asked)
        csr = replace(admission.grant.csr, spki=spki(key), spki_sha256=spki_hash(spki(key)))
        (issued,) = enrollment.issue([replace(admission, grant=replace(admission.grant, csr=csr))])
    return Holder(key, x509.load_der_x509_certificate(issued.certificate))
