"""What an operator types for devices, names and serials, checked before anything is done with it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import click

from estserver.cli.common import read_file
from estserver.errors import ConfigError
from estserver.events import serial_text
from estserver.model import CertificateRecord, Serial
from estserver.policy.names import DEVICE_ID as _DEVICE_ID
from estserver.policy.names import attribute_name

_DEVICE_PATTERN = re.compile(r"[a-z0-9*?](?:[a-z0-9._*?-]{0,62}[a-z0-9*?])?")
_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._@-]{0,62}[A-Za-z0-9])?")
_SAN_PATTERN = re.compile(r"(dns|ip|uri):[!-~]{1,255}")
CA_KEY_KINDS = ("P-256", "P-384", "RSA-3072", "Ed25519", "ML-DSA-44", "ML-DSA-65", "ML-DSA-87")
"""As `estserver.keys.KINDS`, which `--help` does not load."""
_DEVICES_MAX = 100_000
_PROBLEMS_MAX = 10


class _Text(click.ParamType[str]):
    """Text of one form, or a usage error that says which."""

    def __init__(self, name: str, form: re.Pattern[str], wanted: str) -> None:
        self.name = name
        self._form = form
        self._wanted = wanted

    def fits(self, text: str) -> bool:
        """Return whether a text has the form."""
        return self._form.fullmatch(text) is not None

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Check."""
        text = str(value)
        if not self.fits(text):
            self.fail(f"{text!r} is not {self._wanted}", param, ctx)
        return text


_ID_FORM = "1 to 64 of a-z 0-9 . _ -, beginning and ending with a letter or digit"
NAME = _Text("name", _NAME, "a name: 1 to 64 of A-Z a-z 0-9 . _ @ -, beginning and ending with a letter or digit")
DEVICE_ID = _Text("device", _DEVICE_ID, f"a device id: {_ID_FORM}")
DEVICE_PATTERN = _Text("pattern", _DEVICE_PATTERN, f"a device id or pattern of one: {_ID_FORM}, with * and ?")
SAN_PATTERN = _Text("name", _SAN_PATTERN, "a name such as dns:*.example.org, ip:192.0.2.0/24 or uri:urn:dev:*")


class SerialType(click.ParamType[Serial]):
    """A certificate serial in hex, as openssl and browsers print it: any case, colons, `0x`, leading zeros."""

    name = "serial"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> Serial:
        """Parse, or fail as a usage error."""
        if isinstance(value, int):
            return Serial(value)
        digits = str(value).lower().removeprefix("0x").replace(":", "")
        if not re.fullmatch(r"[0-9a-f]{1,48}", digits) or not 0 < int(digits, 16) < 1 << 160:
            self.fail(f"{value!r} is not a serial number in hex", param, ctx)
        return Serial(int(digits, 16))


def devices_from(values: Sequence[str]) -> tuple[str, ...]:
    """Read device patterns: each value is a pattern, or the name of a file with one on each line (`#` comments).

    Raises:
        ConfigError: every line that is not a pattern, with its number.
    """
    devices: dict[str, None] = {}
    for value in values:
        if _DEVICE_PATTERN.fullmatch(value) and not Path(value).is_file():
            devices[value] = None
        else:
            devices |= dict.fromkeys(_lines(Path(value)))
    if len(devices) > _DEVICES_MAX:
        raise ConfigError(f"more than {_DEVICES_MAX} devices: use a pattern")
    return tuple(devices)


def _lines(path: Path) -> list[str]:
    text = read_file(path, advice="give a device id, a pattern with * and ?, or a file of them", max_bytes=8_388_608)
    lines = [line.partition("#")[0].strip() for line in text.decode("utf-8-sig", errors="replace").splitlines()]
    wrong = [
        f"{path}:{number}: {line!r} is not a device id or pattern"
        for number, line in enumerate(lines, 1)
        if line and not _DEVICE_PATTERN.fullmatch(line)
    ]
    if wrong:
        more = [f"{path}: and {len(wrong) - _PROBLEMS_MAX} more"] if len(wrong) > _PROBLEMS_MAX else []
        raise ConfigError(*wrong[:_PROBLEMS_MAX], *more, advice=f"a device id has {_ID_FORM}")
    if not any(lines):
        raise ConfigError(f"{path} names no device")
    return [line for line in lines if line]


def certificate_row(record: CertificateRecord) -> dict[str, object]:
    """Return what an operator is shown of a certificate."""
    return {
        "serial": serial_text(record.serial),
        "device": record.device,
        "profile": record.profile,
        "label": record.label,
        "operation": record.operation,
        "requester": record.requester,
        "status": record.status,
        "key": record.key_name,
        "subject": ", ".join(f"{attribute_name(name.oid)}={name.value}" for name in record.subject),
        "san": tuple(map(str, record.san)),
        "not_before": record.not_before,
        "not_after": record.not_after,
        "renew_after": record.renew_after,
        "issued_at": record.issued_at,
        "predecessor": None if record.predecessor is None else serial_text(record.predecessor),
        "superseded_by": None if record.superseded_by is None else serial_text(record.superseded_by),
        "revoked_at": record.revoked_at,
        "revocation_reason": record.revocation_reason,
        "spki_sha256": record.spki_sha256,
        "sha256": record.sha256,
    }
