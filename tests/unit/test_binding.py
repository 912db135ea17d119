"""RFC 7030 §3.5 as a table: what a request carries, what the connection gives, who posts it, what is required."""

from __future__ import annotations

import base64
from dataclasses import replace
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from estserver import binding
from estserver.errors import ChannelBindingFailed
from estserver.model import ChannelBinding, Csr, DeviceId, Identity, IdentityKind, Peer, SpkiHash
from tests.policy_support import asked, previous

UNIQUE, EXPORTER = ChannelBinding("tls-unique", b"u" * 12), ChannelBinding("tls-exporter", b"e" * 32)
DEVICE = Identity(IdentityKind.CREDENTIAL, "sn-1", ("sn-1",))
STATION = Identity(
    IdentityKind.STATION, "line-1", ("*",), certificate=previous(asked(("2.5.4.3", "line-1"))), may_assert_binding=True
)


def text(value: bytes) -> str:
    return base64.b64encode(value).decode()


def check(carried: str | None, given_: ChannelBinding | None, who: Identity, *, required: bool) -> str:
    peer = Peer("192.0.2.1", binding=given_)
    try:
        return binding.check(asked(binding=carried), peer, who, DeviceId("sn-1"), required=required)
    except ChannelBindingFailed as error:
        return f"refused: {error}"


@pytest.mark.parametrize("required", [True, False])
@pytest.mark.parametrize(
    ("carried", "given_", "device", "station"),
    [
        (text(b"u" * 12), UNIQUE, "verified", "verified"),
        (text(b"e" * 32), EXPORTER, "verified", "verified"),
        (text(b"u" * 12), EXPORTER, "refused", "asserted"),
        (text(b"e" * 32), UNIQUE, "refused", "asserted"),
        (text(b"x" * 12), UNIQUE, "refused", "asserted"),
        ("no base64!", UNIQUE, "refused", "asserted"),
        ("ünï", UNIQUE, "refused", "asserted"),
        ("", UNIQUE, "refused", "asserted"),
        (text(b"u" * 12), None, "refused", "asserted"),
    ],
)
def test_a_binding_that_is_there_is_checked_whatever_the_policy(
    carried: str, given_: ChannelBinding | None, device: str, station: str, required: bool
) -> None:
    assert check(carried, given_, DEVICE, required=required).startswith(device)
    assert check(carried, given_, STATION, required=required).startswith(station)


@pytest.mark.parametrize("given_", [UNIQUE, EXPORTER, None])
def test_one_that_is_not_there_is_missed_where_it_is_required(given_: ChannelBinding | None) -> None:
    assert check(None, given_, DEVICE, required=False) == "absent"
    assert check(None, given_, DEVICE, required=True).startswith("refused: linking of identity")
    assert check(None, given_, STATION, required=True) == "asserted"


def test_s_p14_where_the_connection_gives_none_a_request_that_carries_one_is_refused() -> None:
    assert "offers none" in check(text(b"u" * 12), None, DEVICE, required=False)


def test_b_05_the_binding_of_one_connection_vouches_for_one_key() -> None:
    """RFC 9266 §4.1; the same key may ask again, a registration authority and a label of that kind may bring others."""
    memory: dict[str, SpkiHash] = {}
    peer = Peer("192.0.2.1", binding=UNIQUE, first_bound=partial(memory.setdefault, "first"))
    first, second = (asked(binding=text(UNIQUE.value), spki_sha256=SpkiHash(digit * 64)) for digit in "12")

    def bound(csr: Csr, who: Identity = DEVICE, *, many_keys: bool = False) -> str:
        return binding.check(csr, peer, who, DeviceId("sn-1"), required=False, many_keys=many_keys)

    assert [bound(first), bound(first)] == ["verified", "verified"]
    with pytest.raises(ChannelBindingFailed, match="open a new connection for each key"):
        bound(second)
    assert bound(second, many_keys=True) == "verified"
    assert bound(second, STATION) == "verified"
    assert binding.check(second, replace(peer, first_bound=None), DEVICE, None, required=False) == "verified"


@given(st.binary(max_size=40), st.sampled_from([UNIQUE, EXPORTER]))
def test_only_the_whole_value_is_the_value(value: bytes, given_: ChannelBinding) -> None:
    assert (check(text(value), given_, DEVICE, required=False) == "verified") is (value == given_.value)


@given(st.text(max_size=60))
def test_whatever_is_carried_it_is_verified_or_refused(carried: str) -> None:
    assert check(carried, UNIQUE, DEVICE, required=False).startswith("refused")
