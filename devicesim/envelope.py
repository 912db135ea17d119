"""What `/serverkeygen` returns, read on this side: two MIME parts, and a key that may be sealed (RFC 7030 §4.4.2).

Rules:
- Whatever comes in, only our own errors leave; what could not be opened is not described.
- Parts in any order, preamble and epilogue ignored, CRLF or LF; Content-Transfer-Encoding is not read (RFC 8951 §3).
- Whether what was encrypted is a bare SignedData or a whole ContentInfo is left open by RFC 5652: both are read.
- Of a signed package only the octets that the signature covers are used; whether to believe the signer is for the
  client to decide.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.message import Message
from email.parser import BytesParser
from pathlib import Path
from typing import Any

from asn1crypto import cms, core, parser
from asn1crypto import x509 as asn1_x509
from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa, x25519
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.kdf.x963kdf import X963KDF
from cryptography.hazmat.primitives.keywrap import InvalidUnwrap, aes_key_unwrap
from cryptography.hazmat.primitives.padding import PKCS7
from cryptography.hazmat.primitives.serialization import Encoding, load_der_private_key, load_pem_private_key

from devicesim.codec import decode_body
from devicesim.csr import PrivateKey
from devicesim.der import der_value, oid_value
from devicesim.errors import BadAnswer, KeyStoreError, VerificationFailed
from devicesim.mldsa import seed_form
from devicesim.replies import Body

DECRYPT_KEY_ID = "1.2.840.113549.1.9.16.2.37"
ASYMMETRIC_DECRYPT_KEY_ID = "1.2.840.113549.1.9.16.2.54"
SMIME_CAPABILITIES = "1.2.840.113549.1.9.15"

_AES = "2.16.840.1.101.3.4.1"
_CIPHERS = {f"{_AES}.{arc}": length for arc, length in ((2, 16), (22, 24), (42, 32))}  # AES-CBC
_WRAPS = {f"{_AES}.{arc}": length for arc, length in ((5, 16), (25, 24), (45, 32))}
_AGREEMENTS: dict[str, hashes.HashAlgorithm] = {
    "1.3.132.1.11.1": hashes.SHA256(),
    "1.3.132.1.11.2": hashes.SHA384(),
    "1.3.132.1.11.3": hashes.SHA512(),
}
_RSA, _OAEP = "1.2.840.113549.1.1.1", "1.2.840.113549.1.1.7"
_KEY_PACKAGE = "2.16.840.1.101.2.1.2.78.5"
_HASHES: dict[str, hashes.HashAlgorithm] = {
    "sha1": hashes.SHA1(),  # noqa: S303 - in RSAES-OAEP only, where it is the default (RFC 8017 §A.2.1)
    "sha256": hashes.SHA256(),
    "sha384": hashes.SHA384(),
    "sha512": hashes.SHA512(),
}
_ERRORS = (
    ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError, RecursionError, LookupError,
    InvalidUnwrap, InvalidSignature, UnsupportedAlgorithm, x509.InvalidVersion,
)  # fmt: skip


DecryptionKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | x25519.X25519PrivateKey


# --- how a key is to be sealed --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SharedKey:
    """A symmetric key that the server has too, and the name both give it (RFC 7030 §4.4.1.1)."""

    key_id: bytes
    key: bytes = field(repr=False)

    def attributes(self) -> tuple[tuple[str, bytes], ...]:
        """Return what asks for it in a request."""
        wrap = next((oid for oid, length in _WRAPS.items() if length == len(self.key)), _AES + ".45")
        listed = [[oid] for oid, length in _CIPHERS.items() if length >= len(self.key)]
        return (DECRYPT_KEY_ID, der_value(0x04, self.key_id)), (SMIME_CAPABILITIES, _capabilities([wrap], *listed))

    def open(self, info: cms.RecipientInfo) -> bytes | None:
        """Return the content-encryption key, if this recipient is us."""
        if info.name != "kekri" or info.chosen["kekid"]["key_identifier"].native != self.key_id:
            return None
        if _WRAPS[info.chosen["key_encryption_algorithm"]["algorithm"].dotted] != len(self.key):
            raise ValueError("the key wrap does not fit the key")
        return aes_key_unwrap(self.key, info.chosen["encrypted_key"].native)


@dataclass(frozen=True, slots=True)
class OwnCertificate:
    """A certificate of this device's that the server knows, and its key (RFC 7030 §4.4.1.2)."""

    certificate: x509.Certificate
    key: DecryptionKey = field(repr=False)

    def attributes(self) -> tuple[tuple[str, bytes], ...]:
        """Return what asks for it in a request."""
        agreements = [["1.3.132.1.11.1", oid] for oid in _WRAPS]
        listed = [[_OAEP]] if isinstance(self.key, rsa.RSAPrivateKey) else agreements
        listed += [[oid] for oid in _CIPHERS]
        return (
            (ASYMMETRIC_DECRYPT_KEY_ID, der_value(0x04, self._key_id() or self._issuer_and_serial())),
            (SMIME_CAPABILITIES, _capabilities(*listed)),
        )

    def open(self, info: cms.RecipientInfo) -> bytes | None:
        """Return the content-encryption key, if this recipient is us."""
        if info.name == "ktri" and isinstance(self.key, rsa.RSAPrivateKey) and self._is(info.chosen["rid"]):
            return self._decrypt(self.key, info.chosen)
        if info.name == "kari" and not isinstance(self.key, rsa.RSAPrivateKey):
            for one in info.chosen["recipient_encrypted_keys"]:
                if self._is(one["rid"]):
                    return self._agree(info.chosen, one["encrypted_key"].native)
        return None

    def _is(self, rid: Any) -> bool:  # noqa: ANN401 - a RecipientIdentifier or a KeyAgreementRecipientIdentifier
        if rid.name == "issuer_and_serial_number":
            return bool(rid.chosen.dump() == self._issuer_and_serial())
        found = rid.chosen["subject_key_identifier"] if rid.name == "r_key_id" else rid.chosen
        return bool(found.native == self._key_id())

    def _key_id(self) -> bytes | None:
        try:
            return self.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
        except x509.ExtensionNotFound:
            return None

    def _issuer_and_serial(self) -> bytes:
        parsed = asn1_x509.Certificate.load(self.certificate.public_bytes(Encoding.DER))
        issuer, serial = parsed["tbs_certificate"]["issuer"].dump(), parsed["tbs_certificate"]["serial_number"].dump()
        return der_value(0x30, issuer, serial)

    @staticmethod
    def _decrypt(key: rsa.RSAPrivateKey, info: cms.KeyTransRecipientInfo) -> bytes:
        algorithm = info["key_encryption_algorithm"]
        if algorithm["algorithm"].dotted == _RSA:
            return key.decrypt(info["encrypted_key"].native, padding.PKCS1v15())
        if algorithm["algorithm"].dotted != _OAEP:
            raise ValueError("not the key transport that was asked for")
        parameters = algorithm["parameters"]
        digest = _HASHES[parameters["hash_algorithm"]["algorithm"].native]
        mask = _HASHES[parameters["mask_gen_algorithm"]["parameters"]["algorithm"].native]
        return key.decrypt(info["encrypted_key"].native, padding.OAEP(padding.MGF1(mask), digest, None))

    def _agree(self, info: cms.KeyAgreeRecipientInfo, wrapped: bytes) -> bytes:
        """Derive the wrapping key (RFC 5753 §7.2); the curve is that of our own key, whatever the message says."""
        sender = core.Sequence.load(b"\x30" + info["originator"].chosen.dump()[1:])
        point = bytes(sender[1].contents[1:])
        if isinstance(self.key, x25519.X25519PrivateKey):
            shared = self.key.exchange(x25519.X25519PublicKey.from_public_bytes(point))
        else:
            assert isinstance(self.key, ec.EllipticCurvePrivateKey)
            shared = self.key.exchange(ec.ECDH(), ec.EllipticCurvePublicKey.from_encoded_point(self.key.curve, point))
        algorithm = info["key_encryption_algorithm"]
        wrap = algorithm["parameters"].dump()
        length = _WRAPS[core.Sequence.load(wrap)[0].dotted]
        ukm = info["ukm"].native
        context = der_value(
            0x30,
            wrap,
            der_value(0xA0, der_value(0x04, ukm)) if ukm is not None else b"",
            der_value(0xA2, der_value(0x04, (length * 8).to_bytes(4))),
        )
        key = X963KDF(_AGREEMENTS[algorithm["algorithm"].dotted], length, context).derive(shared)
        return aes_key_unwrap(key, wrapped)


Decryptor = SharedKey | OwnCertificate


# --- the answer -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class KeyAnswer:
    """The two parts of an answer: a key, in clear or sealed, and a certs-only message."""

    key: bytes = field(repr=False)
    sealed: bool
    certificates: bytes


@dataclass(frozen=True, slots=True)
class SignedKey:
    """A key, and who signed that it made it; the signature is right, the signer may be anybody."""

    key: PrivateKey = field(repr=False)
    signer: x509.Certificate
    certificates: tuple[x509.Certificate, ...]


def key_and_certificate(content_type: str, body: bytes) -> KeyAnswer:
    """Take the two parts of a multipart answer apart (RFC 7030 §4.4.2)."""
    head = f"Content-Type: {content_type}\r\n\r\n".encode("latin-1", "replace")
    message = BytesParser().parsebytes(head + body)
    if message.get_content_type() != "multipart/mixed" or not message.is_multipart():
        raise BadAnswer("the answer should be multipart/mixed with a key and a certificate")
    found = dict[str, bytes]()
    for part in message.get_payload():
        assert isinstance(part, Message)
        kind = _kind_of(part)
        if kind in found:
            raise BadAnswer(f"the answer has two parts that hold a {kind}")
        found[kind] = decode_body(str(part.get_payload()).encode("latin-1", "replace"))
    key = found.get("sealed key", found.get("key"))
    if key is None or "certificate" not in found or len(found) != 2:
        raise BadAnswer("the answer does not hold one key and one certificate")
    return KeyAnswer(key, "sealed key" in found, found["certificate"])


def _kind_of(part: Message) -> str:
    smime_type = str(part.get_param("smime-type") or "").lower()
    kind = part.get_content_type(), smime_type if part.get_content_type() == Body.CERTS_ONLY.media_type else ""
    return _KINDS.get(kind, "part of an unknown kind")


_KINDS = {
    ("application/pkcs8", ""): "key",
    ("application/pkcs7-mime", "server-generated-key"): "sealed key",
    ("application/pkcs7-mime", "certs-only"): "certificate",
}


def load_pkcs8(der: bytes) -> PrivateKey:
    """Read a private key."""
    with _reading("a private key"):
        key = load_der_private_key(seed_form(der) or der, None)
        if not isinstance(key, PrivateKey):
            raise TypeError("a key that cannot sign")
        return key


def load_decryption_key(pem: bytes, path: Path, passphrase: bytes | None) -> DecryptionKey:
    """Read the private key of an `OwnCertificate`; unlike a device's other keys it need not be able to sign."""
    try:
        key = load_pem_private_key(pem, passphrase if b"ENCRYPTED" in pem else None)
    except _ERRORS as error:
        advice = "expected a private key in PEM, and its passphrase if it has one"
        raise KeyStoreError(f"the key in {path} cannot be read", advice=advice) from error
    if not isinstance(key, DecryptionKey):
        raise KeyStoreError(f"the key in {path} cannot open what is sealed", advice="RSA, EC or X25519 is wanted")
    return key


def unseal(der: bytes, decryptor: Decryptor) -> SignedKey:
    """Open a sealed key and check the signature on it (RFC 7030 §4.4.2, RFC 5652 §5.6)."""
    with _reading("a sealed key that this device can open"):
        content = cms.ContentInfo.load(der, strict=True)
        if content["content_type"].native != "enveloped_data":
            raise ValueError("not enveloped data")
        opened = (decryptor.open(info) for info in content["content"]["recipient_infos"])
        secret = next((found for found in opened if found is not None), None)
        if secret is None:
            raise ValueError("it is sealed for somebody else")
        inner = content["content"]["encrypted_content_info"]
        if inner["content_type"].native != "signed_data":
            raise ValueError("what is inside is not signed")
        return _signed_key(_decrypt(inner, secret))


def _decrypt(inner: cms.EncryptedContentInfo, secret: bytes) -> bytes:
    algorithm = inner["content_encryption_algorithm"]
    if _CIPHERS[algorithm["algorithm"].dotted] != len(secret):
        raise ValueError("the key does not fit the cipher")
    vector = algorithm["parameters"].native
    decryptor = Cipher(algorithms.AES(secret), modes.CBC(vector)).decryptor()
    padded = decryptor.update(inner["encrypted_content"].native) + decryptor.finalize()
    unpadder = PKCS7(128).unpadder()
    return unpadder.update(padded) + unpadder.finalize()


def _signed_key(der: bytes) -> SignedKey:
    if der[:1] == b"\xa0":  # ContentInfo without its type: the explicit tag is left
        der = parser.parse(der, strict=True)[4]
    outer = core.Sequence.load(der, strict=True)
    if isinstance(outer[0], core.ObjectIdentifier):
        signed = cms.ContentInfo.load(der, strict=True)["content"]
    else:
        signed = cms.SignedData.load(der, strict=True)
    content = signed["encap_content_info"]
    if content["content_type"].dotted != _KEY_PACKAGE:
        raise ValueError("what is signed is no key package")
    package = bytes(content["content"])
    found = [choice.chosen.dump() for choice in signed["certificates"] if choice.name == "certificate"]
    certificates = tuple(map(x509.load_der_x509_certificate, found))
    (info,) = signed["signer_infos"]
    signer = next((one for one in certificates if _signed_by(info["sid"], one)), None)
    if signer is None:
        raise ValueError("the signer's certificate is not there")
    _verify(info, signer, package)
    keys = core.SequenceOf.load(package, strict=True, spec=core.Any)
    if len(keys) != 1:
        raise ValueError("not exactly one key")
    return SignedKey(load_pkcs8(keys[0].dump()), signer, certificates)


def _signed_by(sid: cms.SignerIdentifier, certificate: x509.Certificate) -> bool:
    parsed = asn1_x509.Certificate.load(certificate.public_bytes(Encoding.DER))
    if sid.name == "subject_key_identifier":
        return bool(parsed.key_identifier == sid.native)
    same_serial = sid.chosen["serial_number"].native == parsed.serial_number
    return same_serial and bool(sid.chosen["issuer"] == parsed.issuer)


def _verify(info: cms.SignerInfo, signer: x509.Certificate, package: bytes) -> None:
    """Check digest and signature over the signed attributes (RFC 5652 §5.4)."""
    name = info["digest_algorithm"]["algorithm"].native
    digest = {"sha256": hashes.SHA256(), "sha384": hashes.SHA384(), "sha512": hashes.SHA512()}[name]
    attributes = {one["type"].dotted: one["values"] for one in info["signed_attrs"]}
    (kind,) = attributes["1.2.840.113549.1.9.3"]
    (claimed,) = attributes["1.2.840.113549.1.9.4"]
    if kind.dotted != _KEY_PACKAGE or claimed.native != hashlib.new(name, package).digest():
        raise ValueError("the signature is over something else")
    covered, signature = b"\x31" + info["signed_attrs"].dump()[1:], info["signature"].native
    key: Any = signer.public_key()
    if isinstance(key, ec.EllipticCurvePublicKey):
        key.verify(signature, covered, ec.ECDSA(digest))
    elif isinstance(key, rsa.RSAPublicKey):
        key.verify(signature, covered, padding.PKCS1v15(), digest)
    else:
        key.verify(signature, covered)


# --- parts ----------------------------------------------------------------------------------------------------------


@contextmanager
def _reading(what: str) -> Iterator[None]:
    """Say that it failed, and not where: an error that tells more is an oracle (RFC 3218 §2.3)."""
    try:
        yield
    except (VerificationFailed, *_ERRORS) as error:
        raise BadAnswer(f"the answer is not {what}") from error


def _capabilities(*listed: list[str]) -> bytes:
    """Write SMIMECapabilities; the second OID of a row is the algorithm that its parameters name (RFC 5753 §7)."""
    rows = [[oid_value(oid) for oid in row] for row in listed]
    return der_value(0x30, *(der_value(0x30, row[0], *(der_value(0x30, oid) for oid in row[1:])) for row in rows))
