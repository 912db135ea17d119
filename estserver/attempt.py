"""What one enrolment is made of on its way through `estserver.enroll`: the door, the request, what is known of it."""

from __future__ import annotations

from dataclasses import dataclass

from estserver.ca import IssuingCa
from estserver.keygen import DeliveredKey, KeyGeneration
from estserver.limits import Bucket
from estserver.model import BasicCredentials, Csr, DeviceId, Grant, Identity, Operation, Peer
from estserver.policy import Profile, device_of


@dataclass(frozen=True, slots=True)
class Door:
    """What stands behind one label: which CA signs by which profile.

    Attributes:
        ca_name: topic level of the CA's events.
        binding_required: whether every CSR must carry the channel binding.
        many_keys_bound: whether one connection's binding may vouch for more than one key (RFC 9266 §4.1).
        both_required: whether a credential is wanted in addition to a certificate (RFC 7030 §3.2.3).
        keygen: how keys are made for devices, where they are (RFC 7030 §4.4).
    """

    profile: Profile
    ca: IssuingCa
    ca_name: str
    binding_required: bool = False
    many_keys_bound: bool = False
    both_required: bool = False
    keygen: KeyGeneration | None = None


@dataclass(frozen=True, slots=True)
class Request:
    """One enrolment as it came off the wire; `body` is still base64."""

    operation: Operation
    label: str
    body: bytes
    peer: Peer
    credentials: BasicCredentials | None = None
    id: str = ""


@dataclass(frozen=True, slots=True)
class Attempt:
    """A request and what was established about it so far."""

    request: Request
    door: Door
    csr: Csr | None = None
    identity: Identity | None = None

    @property
    def device(self) -> DeviceId | None:
        """Whom the request is for, if it names one device."""
        return None if self.csr is None else device_of(self.door.profile, self.csr)


@dataclass(frozen=True, slots=True)
class Admission:
    """A request that may have what it asks for, and has not got it yet; `key` goes with the certificate."""

    attempt: Attempt
    grant: Grant
    payment: tuple[Bucket, ...]
    key: DeliveredKey | None = None
