"""Key identifiers, as the tables and the paths have them (RFC 5280 §4.2.1.1, §4.2.1.2)."""

from __future__ import annotations

from cryptography import x509

from estserver.model import Der


def issuer_key_id(certificate: Der) -> str:
    """Return the key identifier of who issued a certificate, in hexadecimal; empty when it does not say."""
    try:
        parsed = x509.load_der_x509_certificate(certificate)
        authority = parsed.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value
    except (ValueError, x509.ExtensionNotFound, x509.DuplicateExtension):
        return ""
    return key_id_text(authority.key_identifier or b"")


def subject_key_id(certificate: Der) -> str:
    """Return the key identifier of a CA's own certificate, in hexadecimal.

    Raises:
        ExtensionNotFound: it has none, which no CA certificate of ours is without (RFC 5280 §4.2.1.2).
    """
    parsed = x509.load_der_x509_certificate(certificate)
    return key_id_text(parsed.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest)


def key_id_text(octets: bytes) -> str:
    """Write a key identifier as the tables and the paths have it."""
    return octets.hex()[:64]
