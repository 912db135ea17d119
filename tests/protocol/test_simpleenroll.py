"""RFC 7030 §4.2.1: a first certificate (S-E, S-R rows)."""

from __future__ import annotations

import pytest

from tests.csr_maker import new_key, request, spki
from tests.est_server import CERTS_ONLY, TLS12, TLS13, Est, fresh_id

pytestmark = pytest.mark.e2e


@pytest.mark.parametrize("tls", [TLS12, TLS13])
def test_s_r01_s_r02_a_good_request_gets_its_certificate_and_nothing_else(est: Est, tls: int) -> None:
    key, device = new_key(), fresh_id()
    answer = est.over(tls).enroll(request(key, device))
    assert (answer.status, answer["Content-Type"]) == (200, CERTS_ONLY)
    assert spki(answer.certificate.public_key()) == spki(key)
    assert answer.certificate.subject.rfc4514_string() == f"CN={device}"
