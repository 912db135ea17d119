"""The device's side of EST: a client, a device that makes its own key, and what it is kept in.

from devicesim import Device, EstClient, FileKeyStore, TrustAnchors

with EstClient("https://est.example", trust=TrustAnchors.from_file("root.pem")) as client:
    identity = Device("sn-00042", store=FileKeyStore("sn-00042"), clock=clock).enroll(client)
"""

from importlib.metadata import PackageNotFoundError, version

from devicesim.anchor import bootstrap
from devicesim.cacerts import CaCerts, Succession
from devicesim.challenge import Credentials
from devicesim.client import EstClient, ServerKey
from devicesim.codec import CsrAttrs
from devicesim.csr import CsrDraft
from devicesim.device import Device, DeviceIdentity, DeviceState
from devicesim.envelope import OwnCertificate, SharedKey
from devicesim.errors import DeviceSimError, EstRefused, Pending, Unreachable, VerificationFailed
from devicesim.keystore import FileKeyStore, KeyStore
from devicesim.transport import ClientIdentity
from devicesim.trust import TrustAnchors
from devicesim.wishes import LocalPolicy

try:
    __version__ = version("estline")
except PackageNotFoundError:  # a source tree that was not installed
    __version__ = "0"

__all__ = [
    "CaCerts",
    "ClientIdentity",
    "Credentials",
    "CsrAttrs",
    "CsrDraft",
    "Device",
    "DeviceIdentity",
    "DeviceSimError",
    "DeviceState",
    "EstClient",
    "EstRefused",
    "FileKeyStore",
    "KeyStore",
    "LocalPolicy",
    "OwnCertificate",
    "Pending",
    "ServerKey",
    "SharedKey",
    "Succession",
    "TrustAnchors",
    "Unreachable",
    "VerificationFailed",
    "__version__",
    "bootstrap",
]
