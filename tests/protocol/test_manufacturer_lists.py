"""Manufacturers' certificates are checked against the manufacturers' own lists, where the operator wants one (V-07)."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from pytest_httpserver import HTTPServer
from werkzeug import Response

from estserver.errors import ConfigError, StateError
from estserver.model import Der
from estserver.records import Missing
from estserver.status.foreign import LIST_MAX_BYTES, fetch, read_list, refresh, refresh_due
from tests import csr_maker
from tests.csr_maker import request
from tests.est_server import DAY, Answer, Est, Holder, fresh_id, today
from tests.makers import Maker
from tests.status_support import eventually

NOW = today()
HOUR = timedelta(hours=1)


def list_of(
    maker: Maker,
    revoked: Iterable[x509.Certificate] = (),
    *,
    begins: datetime = NOW - HOUR,
    ends: datetime = NOW + DAY,
    signer: Maker | None = None,
    partial: bool = False,
) -> bytes:
    builder = x509.CertificateRevocationListBuilder().issuer_name(maker.subject).last_update(begins).next_update(ends)
    for certificate in revoked:
        entry = x509.RevokedCertificateBuilder().serial_number(certificate.serial_number).revocation_date(begins)
        builder = builder.add_revoked_certificate(entry.build())
    if partial:
        point = x509.IssuingDistributionPoint(None, None, False, True, None, False, False)  # noqa: FBT003 - RFC 5280 §5.2.5
        builder = builder.add_extension(point, critical=True)
    crl = builder.sign((signer or maker).key, hashes.SHA256())
    return crl.public_bytes(Encoding.DER)


def trusted(est: Est, name: str | None = None) -> Maker:
    maker = Maker(name or fresh_id("maker"))
    est.home.anchor(maker.name, maker.certificate)
    return maker


def want(est: Est, maker: Maker, source: str | Path, missing: Missing) -> None:
    """As `estserver trust crl set` does, without fetching: that is left to the running server."""
    with est.home.inventory() as inventory:
        inventory.foreign.want(maker.name, str(source), missing, "operator:test", today())


def fetched(est: Est, maker: Maker) -> bool:
    """Wait for the running server to have tried."""

    def look() -> bool | None:
        with est.home.inventory() as inventory:
            (record,) = [one for one in inventory.foreign.all() if one.anchor == maker.name]
        return None if record.tried_at is None else record.problem is None

    return eventually(look)


def enroll(est: Est, idevid: Holder, operation: str = "simpleenroll") -> Answer:
    serial = idevid.certificate.subject.get_attributes_for_oid(x509.NameOID.SERIAL_NUMBER)[0].value
    return est.post(request(csr_maker.new_key(), str(serial)), client=idevid, operation=operation)


@pytest.mark.parametrize("missing", ["refuse", "accept"])
def test_v_07_who_is_on_the_list_is_refused_on_every_operation(est: Est, tmp_path: Path, missing: Missing) -> None:
    maker = trusted(est)
    good, bad = maker.idevid(fresh_id()), maker.idevid(fresh_id())
    file = tmp_path / "maker.crl"
    file.write_bytes(list_of(maker, [bad.certificate]))
    want(est, maker, file, missing)
    assert fetched(est, maker)
    assert enroll(est, good).status == 200
    for operation in ("simpleenroll", "simplereenroll"):
        answer = enroll(est, bad, operation)
        assert answer.status == 403
        assert f"revoked by its manufacturer {maker.name}" in answer.text
    assert est.home.audit()[-1]["outcome"] == "revoked"


@pytest.mark.parametrize(("missing", "status"), [("refuse", 403), ("accept", 200)])
def test_v_07_without_a_list_the_operator_has_said_what_counts(
    est: Est, tmp_path: Path, missing: Missing, status: int
) -> None:
    maker = trusted(est)
    want(est, maker, tmp_path / "nothing.crl", missing)
    answer = enroll(est, maker.idevid(fresh_id()))
    assert answer.status == status
    assert not fetched(est, maker)
    assert enroll(est, maker.idevid(fresh_id())).status == status
    if status == 403:
        assert f"there is no valid revocation list of {maker.name}" in answer.text


@pytest.mark.parametrize(("missing", "status"), [("refuse", 403), ("accept", 200)])
def test_v_07_a_list_that_has_ended_still_names_who_was_revoked(est: Est, missing: Missing, status: int) -> None:
    maker = trusted(est)
    bad = maker.idevid(fresh_id())
    with est.home.inventory() as inventory:
        inventory.foreign.want(maker.name, "/nowhere", missing, "operator:test", NOW)
        serials = {bad.certificate.serial_number}
        inventory.foreign.replace(maker.name, serials, NOW - 2 * DAY, NOW - DAY, NOW)
    assert enroll(est, bad).status == 403
    assert enroll(est, maker.idevid(fresh_id())).status == status


@pytest.mark.parametrize(("missing", "status"), [("refuse", 403), ("accept", 200)])
def test_v_07_the_list_of_a_root_says_nothing_of_what_an_intermediate_issued(
    est: Est, missing: Missing, status: int
) -> None:
    root = trusted(est)
    below = Maker(fresh_id("below"), above=root)
    with est.home.inventory() as inventory:
        inventory.foreign.want(root.name, "/nowhere", missing, "operator:test", NOW)
        inventory.foreign.replace(root.name, set(), NOW - DAY, NOW + DAY, NOW)
    idevid = below.idevid(fresh_id())
    assert enroll(est, idevid).status == status
    with est.home.inventory() as inventory:
        inventory.foreign.replace(root.name, {below.certificate.serial_number}, NOW - DAY, NOW + DAY, NOW)
    assert enroll(est, idevid).status == 403


def test_a_list_comes_over_http_and_goes_with_its_anchor(est: Est, httpserver: HTTPServer) -> None:
    maker = trusted(est)
    bad = maker.idevid(fresh_id())
    pem = x509.load_der_x509_crl(list_of(maker, [bad.certificate])).public_bytes(Encoding.PEM)
    httpserver.expect_request("/moved.crl").respond_with_response(
        Response(status=302, headers={"Location": httpserver.url_for("/maker.crl")})
    )
    httpserver.expect_request("/maker.crl").respond_with_data(pem)
    want(est, maker, httpserver.url_for("/moved.crl"), "refuse")
    assert fetched(est, maker)
    assert enroll(est, bad).status == 403
    with est.home.inventory() as inventory:
        inventory.anchor_remove(maker.name, "operator:test", today())
        assert not [one for one in inventory.foreign.all() if one.anchor == maker.name]
        assert inventory.foreign.status(maker.name, bad.certificate.serial_number) is None


# --- which lists count ----------------------------------------------------------------------------------------------

MAKER, STRANGER = Maker("Maker"), Maker("Stranger")
ANCHOR = Der(MAKER.certificate.public_bytes(Encoding.DER))


@pytest.mark.parametrize(
    ("octets", "problem"),
    [
        (b"", "no revocation list"),
        (b"-----BEGIN X509 CRL-----\nx\n-----END X509 CRL-----\n", "no revocation list"),
        (ANCHOR, "no revocation list"),
        (list_of(MAKER, signer=STRANGER), "not signed by"),
        (list_of(STRANGER, signer=MAKER), "not signed by"),
        (list_of(MAKER, partial=True), "a part only"),
        (list_of(MAKER, begins=NOW - 2 * DAY, ends=NOW - DAY), "has ended"),
    ],
    ids=["empty", "no PEM", "a certificate", "forged", "of another", "partial", "ended"],
)
def test_a_list_that_does_not_count_says_why(octets: bytes, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        read_list(octets, ANCHOR, NOW)


def test_a_list_is_never_replaced_by_an_older_one(est: Est, tmp_path: Path) -> None:
    """Who is in between could show an old one, on which the thief is not yet."""
    maker = trusted(est)
    bad, file, anchor = maker.idevid(fresh_id()), tmp_path / "a.crl", Der(maker.certificate.public_bytes(Encoding.DER))
    with est.home.inventory() as inventory:
        inventory.foreign.want(maker.name, str(file), "refuse", "operator:test", NOW)
        (record,) = [one for one in inventory.foreign.all() if one.anchor == maker.name]
        file.write_bytes(list_of(maker, [bad.certificate]))
        refresh(record, anchor, inventory.foreign, NOW)
        file.write_bytes(list_of(maker, begins=NOW - DAY))
        with pytest.raises(StateError, match="older"):
            refresh(record, anchor, inventory.foreign, NOW)
        (record,) = [one for one in inventory.foreign.all() if one.anchor == maker.name]
        assert (record.entries, "older" in str(record.problem)) == (1, True)
        file.write_bytes(list_of(maker, begins=NOW))
        refresh(record, anchor, inventory.foreign, NOW)
        status = inventory.foreign.status(maker.name, bad.certificate.serial_number)
        assert status is not None
        assert not status.revoked


def test_a_failure_is_told_once_and_tried_again_soon(est: Est, tmp_path: Path) -> None:
    maker, file = Maker("Told"), tmp_path / "told.crl"
    later = today() + 3650 * DAY  # beyond what the running server has to do
    est.home.anchor("told", maker.certificate)
    with est.home.inventory() as inventory:
        inventory.foreign.want("told", str(file), "refuse", "operator:test", NOW)
        inventory.foreign.failed("told", "something else", later)
        others = {one.name for one in inventory.anchors()} - {"told"}

        def due(at: datetime) -> list[str]:
            lists = inventory.foreign
            for name in others & {one.anchor for one in lists.all()}:
                lists.failed(name, "not this test's", later + 365 * DAY)
            return list(refresh_due(lists, inventory.anchors, at, every=HOUR))

        assert due(later + timedelta(minutes=4)) == []
        with pytest.raises(ConfigError, match="of told could not be renewed"):
            due(later + timedelta(minutes=5))
        assert due(later + timedelta(minutes=10)) == []  # told already
        file.write_bytes(list_of(maker, begins=later, ends=later + DAY))
        assert due(later + timedelta(minutes=15)) == ["the revocation list of told is renewed again"]
        assert due(later + timedelta(minutes=50)) == []


def test_only_files_and_http_are_fetched_and_not_without_end(httpserver: HTTPServer, tmp_path: Path) -> None:
    httpserver.expect_request("/away").respond_with_response(Response(status=302, headers={"Location": "ftp://x/y"}))
    httpserver.expect_request("/gone").respond_with_data(b"no", status=410)
    for path, problem in (("/away", "302"), ("/gone", "410")):
        with pytest.raises(ConfigError, match=problem):
            fetch(httpserver.url_for(path))
    with pytest.raises(ConfigError, match="cannot be read"):
        fetch("http://127.0.0.1:1/nobody")
    with pytest.raises(ConfigError, match="No such file"):
        fetch(str(tmp_path / "nothing"))
    big = tmp_path / "big"
    with big.open("wb") as file:
        file.truncate(LIST_MAX_BYTES + 1)
    with pytest.raises(ConfigError, match="larger"):
        fetch(str(big))
