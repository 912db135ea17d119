"""Exports of a line: every format holds what it says; limits, signatures, nothing secret, nothing written over."""

from __future__ import annotations

import base64
import csv
import dataclasses
import json
import stat
import sys
import textwrap
import tracemalloc
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from joserfc import jws as joserfc_jws
from joserfc.jwk import ECKey

from devicesim.errors import ConfigInvalid, Conflict, UsageProblem, VerificationFailed
from devicesim.exports import formats, jws
from devicesim.exports.arrays import read_array
from devicesim.exports.export import Exported, export
from devicesim.exports.format import Format, Occasion
from devicesim.exports.formats import csv_manifest
from devicesim.exports.ledger import Issuers, Snapshot, snapshot
from devicesim.exports.provisioned import FIELDS, Provisioned, facts_of, unpem
from devicesim.exports.registry import format_named, formats_known
from devicesim.line.findings import InputInvalid
from devicesim.transport import ClientIdentity
from devicesim.trust import TrustAnchors
from tests.line_support import PaperLine, write_batch
from tests.mqtt_pki import real_now

HEADER = "device_id,serial,model,hw_rev,mac,se_id,group"
HURTFUL = ['"SEN,1 ""quoted"";\'s"', "=cmd()|' /C calc'!A0", "+49", "Gerät №3 温度计 🔑", "@SUM(1)", "-1+1"]
EVERY = sorted(formats_known())


class Factory:
    """A line that has made its units, and what an export of them needs."""

    def __init__(self, directory: Path) -> None:
        self.line = PaperLine(directory, real_now())
        self.out = directory / "out"
        self.station = ClientIdentity((self.line.station.certificate,), self.line.station.key)

    def make(self, rows: list[str], *, batch: str = "b1") -> None:
        made = write_batch(self.line.directory / batch, [f"{row}\n" for row in rows], batch_id=batch, header=HEADER)
        with self.line.session() as (line, _):
            assert line.run(made, slots=2, progress=self._quiet()) is None

    @staticmethod
    def _quiet():
        from tests.line_support import Watching

        return Watching()

    def units(self, batch: str = "b1") -> list[Provisioned]:
        return self.held(batch, lambda held: list(held.units()))

    def held(self, batch: str, use: Callable[[Snapshot], object]):
        with self.line.session() as (_, ledger), snapshot(ledger, batch, Issuers((), self.line.pki.trust)) as held:
            return use(held)

    def export(self, name: str, batch: str = "b1", out: Path | None = None) -> Exported:
        form = format_named(name)

        def run(held: Snapshot) -> Exported:
            occasion = Occasion(batch, held.passed, self.station)
            return export(form, held.units, occasion, out or self.out, trust=self.line.pki.trust, now=self.line.at)

        return self.held(batch, run)

    def judged(self, path: Path, name: str, trust: TrustAnchors | None = None):
        verify = format_named(name).verify
        assert verify is not None
        return list(verify(path, trust or self.line.pki.trust, self.line.at))


@pytest.fixture
def factory(tmp_path) -> Factory:
    return Factory(tmp_path)


def plain(count: int) -> list[str]:
    return [
        f"sn-{n:04d},SEN-{n},sensor,c,02:00:5e:10:{n // 256:02x}:{n % 256:02x},0123ab{n:04d},lot/a"
        for n in range(count)
    ]


def files_below(path: Path) -> Iterator[Path]:
    return (each for each in sorted(path.rglob("*")) if each.is_file())


# --- what comes out of the ledger -----------------------------------------------------------------------------------


def test_a_unit_is_what_the_ledger_and_its_certificate_say(factory):
    factory.make(plain(3))
    unit = factory.units()[1]
    certificate = x509.load_der_x509_certificate(unit.certificate)
    assert (unit.device_id, unit.serial, unit.mac) == ("sn-0001", "SEN-1", "02:00:5e:10:00:01")
    assert (unit.batch, unit.model, unit.hw_rev, unit.se_id) == ("b1", "sensor", "c", "0123ab0001")
    assert (unit.site, unit.line, unit.station, unit.attempts) == ("hh1", "l2", "s-07", 1)
    assert unit.cert_serial == f"{certificate.serial_number:x}"
    assert unit.chain == (factory.line.pki.root.public_bytes(Encoding.DER),)
    assert x509.load_der_x509_csr(unit.csr).public_key() == certificate.public_key()
    with factory.line.session() as (_, ledger):
        assert ledger.verify_chain().seq >= unit.ledger_seq > 0


def test_what_has_not_passed_is_in_no_export(factory):
    factory.line.est.faults.extend(["refused"])
    made = write_batch(factory.line.directory / "b1", [f"{row}\n" for row in plain(3)], header=HEADER)
    factory.line.run(made)
    assert factory.held("b1", lambda held: (held.planned, held.passed)) == (3, 2)
    assert [unit.device_id for unit in factory.units()] == ["sn-0001", "sn-0002"]
    assert factory.export("csv").units == 2


def test_a_batch_without_a_pass_or_without_a_name_exports_nothing(factory):
    factory.line.est.faults.extend(["refused"] * 2)
    factory.line.run(write_batch(factory.line.directory / "b1", [f"{row}\n" for row in plain(2)], header=HEADER))
    with pytest.raises(UsageProblem, match="no unit of batch b1 has passed"):
        factory.export("csv")
    with pytest.raises(UsageProblem, match="there is no batch 'b9'"):
        factory.export("csv", "b9")
    assert not factory.out.exists()


def test_a_ledger_with_another_certificate_in_it_is_not_exported(factory):
    factory.make(plain(2))
    with factory.line.session() as (_, ledger):
        other = factory.line.pki.device("sn-0001").certificate.public_bytes(Encoding.DER)
        conn = ledger.connect()
        conn.execute("UPDATE unit SET certificate = ? WHERE device_id = 'sn-0001'", (other,))
        conn.commit()
        conn.close()
    with pytest.raises(VerificationFailed, match="sn-0001: its certificate is not the one"):
        factory.export("csv")
    assert not list(factory.out.glob("*"))


def test_an_issuer_that_is_not_at_hand_is_asked_for(factory, tmp_path):
    factory.make(plain(1))
    stranger = PaperLine(tmp_path / "other", real_now()).pki.trust
    with (
        pytest.raises(ConfigInvalid, match="does not chain") as caught,
        factory.line.session() as (_, ledger),
        snapshot(ledger, "b1", Issuers((), stranger)) as held,
    ):
        list(held.units())
    assert "--ca FILE" in caught.value.advice


# --- every format ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EVERY)
def test_what_a_format_holds_comes_back_field_by_field(factory, name):
    factory.make(plain(5))
    done = factory.export(name)
    assert done.units == 5
    form = format_named(name)
    found = list(form.read(factory.out / "b1"))
    assert found == [facts_of(unit, form.holds) for unit in factory.units()]
    assert len(found) == 5
    assert {"device_id"} <= form.holds <= set(FIELDS)


@pytest.mark.parametrize("name", EVERY)
def test_files_are_their_owners_alone_and_hold_no_secret(factory, name):
    factory.make(plain(3))
    factory.export(name)
    keys = [path.read_bytes() for path in (factory.line.directory / "devices").rglob("key.pem")]
    assert keys
    for path in files_below(factory.out):
        text = path.read_bytes()
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
        for word in (b"PRIVATE KEY", b"password", b"secret", b"ENROLLMENT_OTP", b"PRIV_KEY", b"CREDENTIALS"):
            assert word not in text, (path, word)
        assert not any(b"".join(key.splitlines()[1:-1]) in text.replace(b"\n", b"").replace(b"\r", b"") for key in keys)
    folders = [path for path in (factory.out, *factory.out.rglob("*")) if path.is_dir()]
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o700 for path in folders)


@pytest.mark.parametrize("name", EVERY)
def test_nothing_is_written_over_and_nothing_is_left_behind(factory, name):
    factory.make(plain(2))
    factory.export(name)
    before = {path: path.read_bytes() for path in files_below(factory.out)}
    with pytest.raises(Conflict, match="exists"):
        factory.export(name)
    assert {path: path.read_bytes() for path in files_below(factory.out)} == before
    assert not list((factory.out / "b1").glob(".*"))


def test_all_formats_of_a_batch_lie_beside_each_other(factory):
    factory.make(plain(2))
    for name in EVERY:
        factory.export(name)
    assert {"manifest.jsonl", "manifest.csv", "manifest.json", "sn-0000", "nrf"} <= {
        path.name for path in (factory.out / "b1").iterdir()
    }


@pytest.mark.parametrize("name", EVERY)
def test_what_is_read_back_differently_is_never_published(factory, name):
    factory.make(plain(3))
    form = format_named(name)

    def lying(directory: Path) -> Iterator[dict]:
        for number, facts in enumerate(form.read(directory)):
            yield {**facts, "device_id": "sn-9999"} if number == 1 else dict(facts)

    with pytest.raises(VerificationFailed, match="sn-0001: read back differently: device_id"):
        _export(factory, dataclasses.replace(form, read=lying))
    short = dataclasses.replace(form, read=lambda directory: iter(list(form.read(directory))[:-1]))
    with pytest.raises(VerificationFailed, match="sn-0002 is in the ledger or in the file"):
        _export(factory, short)
    assert list((factory.out / "b1").iterdir()) == []


def _export(factory: Factory, form: Format) -> Exported:
    def run(held: Snapshot) -> Exported:
        occasion = Occasion("b1", held.passed, factory.station)
        return export(form, held.units, occasion, factory.out, trust=factory.line.pki.trust, now=factory.line.at)

    return factory.held("b1", run)


@pytest.mark.parametrize("name", EVERY)
def test_names_that_hurt_come_back_as_they_were_or_are_refused_by_unit_and_field(factory, name):
    factory.make([f"sn-{n:04d},{serial},sensor,,,," for n, serial in enumerate(HURTFUL)])
    serials = [unit.serial for unit in factory.units()]
    assert serials[0] == 'SEN,1 "quoted";\'s'
    form = format_named(name)
    if "serial" not in form.holds or name in ("jsonl", "csv", "tree", "azure-dps"):
        factory.export(name)
        found = list(form.read(factory.out / "b1"))
        assert [each.get("serial", serial) for each, serial in zip(found, serials, strict=True)] == serials
        return
    with pytest.raises(InputInvalid) as caught:
        factory.export(name)
    refused = {(finding.file, finding.column) for finding in caught.value.findings}
    assert {("sn-0001", "serial"), ("sn-0004", "serial"), ("sn-0005", "serial")} <= refused
    assert not factory.out.exists()


def test_no_cell_of_the_csv_is_a_formula(factory):
    factory.make([f"sn-{n:04d},{serial},sensor,,,," for n, serial in enumerate(HURTFUL)])
    factory.export("csv")
    with (factory.out / "b1" / "manifest.csv").open(encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file, strict=True)
    assert tuple(header) == csv_manifest.COLUMNS
    assert not [cell for row in rows for cell in row if cell[:1] in ("=", "+", "-", "@")]
    assert rows[1][1] == "'=cmd()|' /C calc'!A0"
    assert rows[2][1] == "'+49"


def test_the_columns_of_the_csv_are_the_published_ones():
    assert ",".join(csv_manifest.COLUMNS) == (
        "device_id,serial,batch,model,hw_rev,cert_serial,cert_sha256,spki_sha256,issuer,not_before,not_after,key_alg,"
        "key_store,station,operator,provisioned_at,attempts,outcome,label,ledger_seq,ledger_head"
    )


# --- limits ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "changed", "field"),
    [
        ("aws-bulk", {"serial": "SEN 1"}, "serial"),
        ("aws-bulk", {"device_id": "a b"}, "device_id"),
        ("aws-bulk", {"key_alg": "Ed25519"}, "key_alg"),
        ("azure-dps", {"device_id": "sn-0000_"}, "device_id"),
        ("azure-dps", {"device_id": "another"}, "device_id"),
        ("azure-dps", {"key_alg": "ML-DSA-65"}, "key_alg"),
        ("nrf", {"group": "a|b"}, "group"),
        ("nrf", {"group": "=a"}, "group"),
        ("nrf", {"key_alg": "RSA-2048"}, "key_alg"),
        ("cumulocity", {"group": "@a"}, "group"),
        ("cumulocity", {"model": ""}, "model"),
        ("thingsboard", {"serial": "x" * 256}, "serial"),
        ("thingsboard", {"hw_rev": "+a"}, "hw_rev"),
        ("microchip", {"key_alg": "ML-DSA-65"}, "key_alg"),
        ("microchip", {"se_id": "sn-0000"}, "se_id"),
    ],
)
def test_a_limit_is_told_with_unit_and_field_and_nothing_is_written(factory, name, changed, field):
    factory.make(plain(2))
    first, second = factory.units()
    wrong, form = dataclasses.replace(first, **changed), format_named(name)
    assert list(form.check(first)) == []
    occasion = Occasion("b1", 2, factory.station)
    with pytest.raises(InputInvalid) as caught:
        export(
            form,
            lambda: iter([second, wrong]),
            occasion,
            factory.out,
            trust=factory.line.pki.trust,
            now=factory.line.at,
        )
    assert {(finding.file, finding.column) for finding in caught.value.findings} == {(wrong.device_id, field)}
    assert not factory.out.exists()


def many(unit: Provisioned, count: int) -> Callable[[], Iterator[Provisioned]]:
    return lambda: (dataclasses.replace(unit, device_id=f"sn-{n:06d}", serial=f"S{n}") for n in range(count))


def test_nrf_splits_at_a_thousand_rows(factory):
    factory.make(plain(1))
    units = many(factory.units()[0], 2001)
    occasion = Occasion("b1", 2001, factory.station)
    export(format_named("nrf"), units, occasion, factory.out, trust=factory.line.pki.trust, now=factory.line.at)
    files = sorted((factory.out / "b1" / "nrf").iterdir())
    counts = []
    for path in files:
        with path.open(encoding="utf-8", newline="") as file:
            counts.append(sum(1 for _ in csv.reader(file, strict=True)))
    assert counts == [1000, 1000, 1]


@pytest.mark.parametrize("name", ["csv", "aws-bulk", "azure-dps", "thingsboard", "nrf"])
def test_memory_does_not_grow_with_the_batch(factory, name):
    factory.make(plain(1))
    form = dataclasses.replace(format_named(name), check=lambda _: iter(()))
    unit, peaks = factory.units()[0], []
    for count in (200, 4000):
        occasion = Occasion(f"b{count}", count, factory.station)
        tracemalloc.start()
        export(form, many(unit, count), occasion, factory.out, trust=factory.line.pki.trust, now=factory.line.at)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 400_000, peaks


# --- signed manifests -----------------------------------------------------------------------------------------------


def test_a_microchip_manifest_is_verified_by_another_implementation(factory):
    factory.make(plain(3))
    factory.export("microchip")
    entries = json.loads((factory.out / "b1" / "manifest.json").read_text("utf-8"))
    station = factory.station.certificates[0]
    key = ECKey.import_key(station.public_bytes(Encoding.PEM).decode())
    assert [entry["header"]["uniqueId"] for entry in entries] == [f"0123ab{n:04d}" for n in range(3)]
    for number, entry in enumerate(entries):
        compact = f"{entry['protected']}.{entry['payload']}.{entry['signature']}"
        signed = joserfc_jws.deserialize_compact(compact, key, algorithms=["ES256"])
        header = signed.headers()
        assert header["x5t#S256"] == jws.b64url(bytes.fromhex(station.fingerprint(_sha256()).hex()))
        element = json.loads(signed.payload)
        assert (element["version"], element["groupId"], element["uniqueId"]) == (1, "lot/a", f"0123ab{number:04d}")
        [jwk] = element["publicKeySet"]["keys"]
        leaf = x509.load_der_x509_certificate(base64.b64decode(jwk["x5c"][0]))
        public = ECKey.import_key({name: jwk[name] for name in ("kty", "crv", "x", "y")})
        assert public.public_key == leaf.public_key()
        assert leaf.subject.rfc4514_string() == f"CN=sn-{number:04d}"


def _sha256():
    from cryptography.hazmat.primitives import hashes

    return hashes.SHA256()


@pytest.mark.parametrize(
    ("key", "alg"),
    [
        (ec.generate_private_key(ec.SECP256R1()), "ES256"),
        (ec.generate_private_key(ec.SECP384R1()), "ES384"),
        (ec.generate_private_key(ec.SECP521R1()), "ES512"),
        (ed25519.Ed25519PrivateKey.generate(), "Ed25519"),
        (rsa.generate_private_key(65537, 2048), "RS256"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_each_kind_of_station_key_signs_as_jose_says(key, alg):
    from joserfc.jwk import OKPKey, RSAKey

    algorithm = jws.algorithm_of(key.public_key())
    assert algorithm.alg == alg
    public = jws.jwk(key.public_key())
    kinds = {"EC": ECKey, "OKP": OKPKey, "RSA": RSAKey}
    header = jws.b64url(json.dumps({"alg": alg}).encode())
    message = f"{header}.{jws.b64url(b'a unit')}"
    compact = f"{message}.{jws.b64url(algorithm.sign(key, message.encode()))}"
    imported = kinds[public["kty"]].import_key(dict(public))
    assert joserfc_jws.deserialize_compact(compact, imported, algorithms=[alg]).payload == b"a unit"


@pytest.mark.parametrize("name", ["jsonl", "microchip"])
def test_every_changed_entry_is_found_and_named(factory, name):
    factory.make(plain(4))
    path = factory.export(name).paths[0]
    sound = path.read_text("utf-8")
    assert [judged.problem for judged in factory.judged(path, name)] == [""] * 4
    assert {judged.signer for judged in factory.judged(path, name)} == {"s-07"}
    for change in (_swap_payloads, _flip_signature):
        entries = [json.loads(line.rstrip(",")) for line in sound.splitlines() if line.startswith("{")]
        change(entries)
        path.write_text(_written(name, entries), "utf-8")
        wrong = [judged for judged in factory.judged(path, name) if judged.problem]
        assert [judged.position for judged in wrong] == [3]
        assert "does not fit" in wrong[0].problem
        assert wrong[0].device_id in ("sn-0002", "sn-0001", "0123ab0002")


def _swap_payloads(entries: list[dict]) -> None:
    entries[2]["payload"] = entries[1]["payload"]


def _flip_signature(entries: list[dict]) -> None:
    holder, name = (entries[2]["signatures"][0], "sig") if "signatures" in entries[2] else (entries[2], "signature")
    raw = holder[name]
    holder[name] = raw[:8] + ("A" if raw[8] != "A" else "B") + raw[9:]


def _written(name: str, entries: list[dict]) -> str:
    return json.dumps(entries, indent=2) if name == "microchip" else "".join(f"{json.dumps(e)}\n" for e in entries)


def test_a_line_taken_out_doubled_moved_or_added_is_found(factory):
    factory.make(plain(4))
    path = factory.export("jsonl").paths[0]
    a, b, c, d = path.read_text("utf-8").splitlines(keepends=True)

    def problems(*lines: str) -> list[str]:
        path.write_text("".join(lines), "utf-8")
        return [judged.problem for judged in factory.judged(path, "jsonl") if judged.problem]

    assert problems(a, b, c, d) == []
    assert "units are missing before it" in problems(a, c, d)[0]
    assert problems(a, b, c) == ["1 of 4 units are missing at the end"]
    assert "stands before it already" in problems(a, b, b, c, d)[0]
    assert len(problems(b, a, c, d)) == 2
    assert problems(a, "{}\n", b, c, d) == ["the signature envelope is malformed"]


def test_a_line_of_another_manifest_is_found(factory):
    factory.make(plain(2))
    factory.make(["gw-1,G1,sensor,,,,", "gw-2,G2,sensor,,,,"], batch="b2")
    one, two = factory.export("jsonl").paths[0], factory.export("jsonl", "b2").paths[0]
    first, second = one.read_text("utf-8").splitlines()[0], two.read_text("utf-8").splitlines()[1]
    one.write_text(f"{first}\n{second}\n", "utf-8")
    assert [judged.problem for judged in factory.judged(one, "jsonl")][1] == (
        "it belongs to another manifest, of batch b2"
    )


def test_the_same_unit_twice_is_found_in_a_microchip_manifest(factory):
    factory.make(plain(2))
    path = factory.export("microchip").paths[0]
    entries = list(read_array(path))
    path.write_text(json.dumps([*entries, entries[0]]), "utf-8")
    assert [judged.problem for judged in factory.judged(path, "microchip")] == [
        "",
        "",
        "it stands in the manifest twice",
    ]


@pytest.mark.parametrize("name", ["jsonl", "microchip"])
def test_a_stranger_and_an_expired_station_are_refused(factory, name, tmp_path):
    factory.make(plain(2))
    path = factory.export(name).paths[0]
    stranger = PaperLine(tmp_path / "other", real_now()).pki.trust
    assert all("does not chain" in judged.problem for judged in factory.judged(path, name, stranger))
    factory.line.at += timedelta(days=60)
    assert all("expired" in judged.problem for judged in factory.judged(path, name))
    with pytest.raises(VerificationFailed, match="signature of this station does not verify"):
        factory.export(name, out=tmp_path / "late")
    assert not list(files_below(tmp_path / "late"))


def test_a_header_cannot_choose_its_own_algorithm(factory):
    factory.make(plain(1))
    path = factory.export("microchip").paths[0]
    [entry] = read_array(path)
    header = json.loads(jws.unb64url(entry["protected"]))
    for changed in ({"alg": "none"}, {"alg": "HS256"}, {"crit": ["exp"]}, {"x5t#S256": "AAAA"}):
        forged = {**entry, "protected": jws.b64url(json.dumps({**header, **changed}).encode())}
        path.write_text(json.dumps([forged]), "utf-8")
        assert [bool(judged.problem) for judged in factory.judged(path, "microchip")] == [True]


@pytest.mark.parametrize(
    "text", ["[\n{", "[\n{}\n", "[1, 2]", "[\n{},\n{}]\n{}", "nothing", "[" * 100_000, '[\n{"payload":1}\n]\n']
)
def test_what_is_no_manifest_is_refused_without_a_traceback(factory, tmp_path, text):
    path = tmp_path / "manifest.json"
    path.write_text(text, "utf-8")
    try:
        judged = factory.judged(path, "microchip")
    except VerificationFailed:
        return
    assert judged
    assert all(each.problem for each in judged)


# --- single formats -------------------------------------------------------------------------------------------------


def test_the_aws_template_declares_what_each_thing_says(factory):
    factory.make(plain(2))
    folder = factory.export("aws-bulk").paths[0]
    template = json.loads((folder / "template.json").read_text("utf-8"))
    things = [json.loads(line) for line in (folder / "things.jsonl").read_text("utf-8").splitlines()]
    assert [thing["ThingName"] for thing in things] == ["sn-0000", "sn-0001"]
    refs = set(_refs(template["Resources"]))
    assert all(set(thing) == set(template["Parameters"]) == refs for thing in things)
    assert all(isinstance(value, str) for thing in things for value in thing.values())


def _refs(value: object) -> Iterator[str]:
    if isinstance(value, dict):
        if set(value) == {"Ref"}:
            yield value["Ref"]
        for each in value.values():
            yield from _refs(each)


def test_the_azure_enrolments_are_one_json_document(factory):
    factory.make(plain(2))
    document = json.loads(factory.export("azure-dps").paths[0].read_text("utf-8"))
    assert [each["registrationId"] for each in document] == ["sn-0000", "sn-0001"]
    primary = document[1]["attestation"]["x509"]["clientCertificates"]["primary"]["certificate"]
    assert base64.b64decode(primary) == factory.units()[1].certificate


def test_the_tree_holds_the_certificate_its_chain_and_its_request(factory):
    factory.make(plain(2))
    factory.export("tree")
    folder, unit = factory.out / "b1" / "sn-0001", factory.units()[1]
    assert sorted(path.name for path in folder.iterdir()) == ["cert.pem", "chain.pem", "csr.der", "record.json"]
    assert unpem((folder / "chain.pem").read_text("ascii")) == unit.chain
    assert json.loads((folder / "record.json").read_text("utf-8"))["ledger_head"] == unit.ledger_head


# --- a format of one's own ------------------------------------------------------------------------------------------

TOY = '''
"""`names.txt`: one device id a line."""

from devicesim.exports.arrays import read_lines, write_lines
from devicesim.exports.format import Format

FORMAT = Format(
    name="names",
    title="device ids alone",
    holds=frozenset({"device_id"}),
    write=lambda units, directory, _: write_lines(directory / "names.txt", (unit.device_id for unit in units)),
    read=lambda directory: ({"device_id": line} for line in read_lines(directory / "names.txt")),
)
'''


def test_a_format_is_one_small_file(factory, tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "names.py").write_text(textwrap.dedent(TOY), "utf-8")
    monkeypatch.setattr(formats, "__path__", [*formats.__path__, str(tmp_path / "mine")])
    monkeypatch.delitem(sys.modules, "devicesim.exports.formats.names", raising=False)
    factory.make(plain(3))
    [path] = factory.export("names").paths
    assert path.read_text("utf-8") == "sn-0000\nsn-0001\nsn-0002\n"
    assert "serial" in format_named("names").missing()
    monkeypatch.delitem(sys.modules, "devicesim.exports.formats.names")


def test_an_unknown_format_is_a_users_mistake():
    with pytest.raises(UsageProblem, match="no format 'xml'") as caught:
        format_named("xml")
    assert caught.value.advice.startswith("one of aws-bulk, azure-dps, csv")
