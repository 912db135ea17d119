"""A profile: one TOML file that says what a kind of certificate is and who may ask for what.

Rules:
- Deny by default: a subject attribute or a kind of SAN that `[allowed]` does not name may not be asked for.
- `[constraints]` limits what every request has: its key and its signature.
- `[certificate]` is what the CA sets by itself; nothing of it comes from the request.
- `{device}` in a pattern is the id of the device that the certificate is for.
- Unknown keys are errors, and all problems of a file are reported at once.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Collection
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from estserver.config import Duration, explain_syntax, explain_validation
from estserver.errors import ConfigError
from estserver.model import IdentityKind
from estserver.policy import names
from estserver.weak_keys import RSA_BITS

SAN_KINDS = ("dns", "ip", "uri", "email")
EXTENDED_KEY_USAGES = {
    "client_auth": "1.3.6.1.5.5.7.3.2",
    "server_auth": "1.3.6.1.5.5.7.3.1",
    "cmc_ra": "1.3.6.1.5.5.7.3.28",
}

SubjectAttribute = Literal["common_name", "serial_number"]
SigningKey = Literal["P-256", "P-384", "P-521", "RSA", "Ed25519", "Ed448", "ML-DSA-44", "ML-DSA-65", "ML-DSA-87"]
KeyType = SigningKey | Literal["X25519", "ML-KEM-768", "ML-KEM-1024"]
ESTABLISHING = {
    "X25519": "key_agreement",  # RFC 8410 §5, RFC 9295
    "ML-KEM-768": "key_encipherment",  # RFC 9935 §5
    "ML-KEM-1024": "key_encipherment",
}
"""Keys that cannot sign, and the one usage that each has; their possession is stated (RFC 9883)."""
KeyUsageName = Literal["digital_signature", "content_commitment", "key_encipherment", "key_agreement"]
EkuName = Literal["client_auth", "server_auth", "cmc_ra"]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", str_max_length=1024)


def _pattern(value: str) -> str:
    if re.search(r"[{}]", value.replace("{device}", "")):
        raise ValueError(f"{value!r} has braces; {{device}} is the only thing that is filled in")
    return value


class NameRule(_Section):
    """What one subject attribute, or one kind of SAN, may be.

    Attributes:
        values: patterns; `{device}` stands for the device id.
        identity: also whatever the asking identity itself was given (credential, certificate being renewed).
        required: the request must have one.
    """

    values: tuple[Annotated[str, AfterValidator(_pattern)], ...] = ()
    identity: bool = False
    required: bool = False


def _one_of(known: Collection[str]) -> AfterValidator:
    def check(name: str) -> str:
        if name not in known:
            raise ValueError(f"is unknown; known are {', '.join(known)}")
        return name

    return AfterValidator(check)


class Allowed(_Section):
    """`[allowed]`: the names a request may carry; what is absent may not be asked for."""

    subject: dict[Annotated[str, _one_of(names.OIDS)], NameRule] = Field(default_factory=dict)
    san: dict[Annotated[str, _one_of(SAN_KINDS)], NameRule] = Field(default_factory=dict)


def _range(bits: tuple[int, int]) -> tuple[int, int]:
    low, high = RSA_BITS
    if not low <= bits[0] <= bits[1] <= high:
        raise ValueError(f"is not a smallest and a largest size from {low} to {high}")
    return bits


class Constraints(_Section):
    """`[constraints]`: limits on the key and the signature of the request."""

    key_types: tuple[KeyType, ...] = Field(min_length=1)
    rsa_bits: Annotated[tuple[int, int], AfterValidator(_range)] = (2048, 4096)
    signature_hashes: tuple[Literal["SHA256", "SHA384", "SHA512"], ...] = ("SHA256", "SHA384", "SHA512")


class CertificateSection(_Section):
    """`[certificate]`: what the CA sets.

    Attributes:
        lifetime: how long it is valid; `never` ends it 9999-12-31 (IEEE 802.1AR IDevIDs).
        renew_at: the fraction of its life after which it is due.
        backdate: how far notBefore lies in the past, for clocks that are slow.
        key_usage: for keys that sign; RSA keys may ask for `key_usage_rsa` as well.
    """

    lifetime: Duration | Literal["never"]
    renew_at: float = Field(default=0.66, gt=0, le=1)
    backdate: Duration = timedelta(minutes=5)
    key_usage: tuple[KeyUsageName, ...] = ("digital_signature",)
    key_usage_rsa: tuple[KeyUsageName, ...] = ("digital_signature", "key_encipherment")
    extended_key_usage: tuple[EkuName, ...] = ()


class Renewal(_Section):
    """`[renewal]`: what `/simplereenroll` may keep and change.

    Attributes:
        key_reuse: `never`, or `same-device` for secure elements whose key cannot be made anew.
        may_change_algorithm: a renewal may bring a key of another kind.
        change_names: `never`, or `same-device`: a ChangeSubjectName may ask for others of the same device's names.
        empty_subject: such a change may leave the subject empty; its names are in the SAN then.
        at_par: what the certificate has, names and kind of key, it may keep, though the profile has become stricter.
    """

    key_reuse: Literal["never", "same-device"] = "never"
    may_change_algorithm: bool = True
    change_names: Literal["never", "same-device"] = "never"
    empty_subject: bool = False
    at_par: bool = True


class Profile(_Section):
    """One kind of certificate.

    Attributes:
        name: file name without `.toml`.
        holder: `device`, or `site` for who is no device but a part of the installation. A name belongs to one of them
            for good: a device never gets the name of a station, a broker or the announcer, nor they a device's.
        device_id: which subject attribute carries the device id; the first that is there counts.
        requesters: how somebody must have been recognised to ask for this profile.
        approval: `required` has an operator decide on every request, renewals included.
        preferred_key: what `/csrattrs` suggests when several key types are allowed.
    """

    name: str = Field(pattern=r"^[a-z0-9]([a-z0-9_-]{0,62}[a-z0-9])?$")
    description: str
    holder: Literal["device", "site"] = "device"
    device_id: tuple[SubjectAttribute, ...] = ("common_name", "serial_number")
    requesters: tuple[IdentityKind, ...]
    approval: Literal["none", "required"] = "none"
    preferred_key: KeyType | None = None
    allowed: Allowed
    constraints: Constraints
    certificate: CertificateSection
    renewal: Renewal = Renewal()

    @model_validator(mode="after")
    def _consistent(self) -> Profile:
        if self.preferred_key is not None and self.preferred_key not in self.constraints.key_types:
            raise ValueError("preferred_key is not one of constraints.key_types")
        if len({kind in ESTABLISHING for kind in self.constraints.key_types}) > 1:
            raise ValueError(
                "constraints.key_types has keys that sign beside keys that cannot: one would replace the other"
            )
        if not any(attribute in self.allowed.subject for attribute in self.device_id):
            raise ValueError("device_id names no attribute that [allowed.subject] allows: nobody could ever enrol")
        return self


def parse_profile(name: str, text: str, *, source: Path) -> Profile:
    """Read one profile.

    Raises:
        ConfigError: with every problem, and its file and line.
    """
    try:
        return Profile.model_validate({**tomllib.loads(text), "name": name})
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(explain_syntax(source, error, text.encode())) from None
    except ValidationError as error:
        raise ConfigError(*explain_validation(source, error, text)) from None
