"""Labels: what a template may say, and that ZPL and PNG say it; the printers take it, or that is told."""

from __future__ import annotations

import io
import re
import socket
import stat
import threading

import pytest
import zxingcpp
from PIL import Image

from devicesim.labels.errors import LabelFailed
from devicesim.labels.label import Label
from devicesim.labels.printer import FolderPrinter, NetworkPrinter, ProgramPrinter, open_printer
from devicesim.labels.template import FIELDS, IDENTIFYING, load_template, parse_template
from devicesim.line.findings import InputInvalid

VALUES = {name: name for name in FIELDS} | {
    "device_id": "sn-0001",
    "serial": "SEN^FS~1_é",
    "cert_serial": "7f" * 20,
    "cert_sha256": "a5" * 32,
    "spki_sha256": "5a" * 32,
    "not_before": "2027-01-01",
}


def label(text: str | None = None, *, dpi: int = 203, **values: str) -> Label:
    template = load_template(None) if text is None else parse_template("t.label", text)
    return Label(template, VALUES | values, dpi)


def decoded(png: bytes) -> list[str]:
    """Read a picture as a scanner would: with a decoder that is not ours and not that of the encoder."""
    codes = zxingcpp.read_barcodes(Image.open(io.BytesIO(png)).convert("L"))
    return [code.text for code in codes if code.format == zxingcpp.BarcodeFormat.QRCode]


def zpl_fields(zpl: str) -> list[tuple[str, str]]:
    """Read the fields of ZPL back: the command before ^FD, and the data with its ^FH escapes resolved."""
    found = re.findall(r"\^(BQ|A0)[^^]*(?:\^FH)\^FD(.*?)\^FS", zpl)
    return [(kind, re.sub(r"_([0-9A-F]{2})", lambda m: chr(int(m[1], 16)), data)) for kind, data in found]


@pytest.mark.parametrize("dpi", [203, 300, 600])
def test_png_and_zpl_say_the_same(dpi):
    made = label(dpi=dpi)
    assert made.text == f"sn-0001 {'7f' * 20}"
    assert decoded(made.png()) == [made.text]
    image = Image.open(io.BytesIO(made.png()))
    assert (image.format, image.size) == ("PNG", (round(50 * dpi / 25.4), round(25 * dpi / 25.4)))
    fields = zpl_fields(made.zpl())
    assert ("BQ", f"QA,{made.text}") in fields
    assert ("A0", "SN SEN^FS~1_é") in fields
    assert made.zpl().startswith("^XA^CI28")
    assert made.zpl().endswith("^XZ\n")


def test_a_field_cannot_end_its_field_in_zpl():
    zpl = label().zpl()
    assert zpl.count("^FS") == 5
    assert "SEN^FS" not in zpl
    hostile = label("size 60 60\nqr 1 1 50 | {device_id}", device_id="a^XZ^XA~JR").zpl()
    assert (hostile.count("^XZ"), hostile.count("^XA"), hostile.count("~")) == (1, 1, 0)


@pytest.mark.parametrize("text", ["12345", "ABC-123", "x" * 200, "grün", "漢字", "a_b^c~d"])
def test_a_qr_code_holds_what_it_is_given(text):
    made = label("size 99 99\nqr 2 2 95 | {device_id}|{serial}", serial=text)
    assert decoded(made.png()) == [f"sn-0001|{text}"]
    assert ("BQ", f"QA,sn-0001|{text}") in zpl_fields(made.zpl())


def test_every_problem_of_a_template_has_its_line():
    text = """\
qr 1 1 10 | {device_id}
size 20 20

# a remark
qr 1 1 10 | {serial}
text 1 1 3 | {colour}
text 1 1 3 | {device_id
text 1 1 3 | {device_id!r}
text 1 x 3 | a
text 1 19 3 | a
text 1 1 3
qr 12 1 10 | {device_id}
line 1 2
size 9 9
"""
    with pytest.raises(InputInvalid) as caught:
        parse_template("odd.label", text)
    found = {finding.row: finding.text for finding in caught.value.findings}
    assert list(found) == [1, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14]
    assert "comes first" in found[1]
    assert all(name in found[5] for name in IDENTIFYING)
    assert "{colour} is no field" in found[6]
    assert "`text X Y SIZE |`" in found[9]
    assert "within the label of 20 x 20 mm" in found[10]
    assert str(caught.value.findings[0]).startswith("odd.label:1: ")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "no QR code"),
        ("size 20 20\ntext 1 1 3 | a\n", "no QR code"),
        ("size 20 20\nqr 1 1 9 | {device_id}\nqr 1 1 9 | {device_id}\n", "one QR code"),
        ("size 0 20\n", "more than 0"),
        ("size 999 20\n", "at most 300"),
    ],
)
def test_a_template_that_makes_no_label_is_refused(text, why):
    with pytest.raises(InputInvalid, match=why):
        parse_template("t", text)


def test_a_template_that_cannot_be_read_is_refused(tmp_path):
    with pytest.raises(InputInvalid, match=re.escape("none.label: cannot be read")):
        load_template(tmp_path / "none.label")
    (tmp_path / "big.label").write_bytes(b"#" * (1 << 17))
    with pytest.raises(InputInvalid, match="larger than"):
        load_template(tmp_path / "big.label")


def test_a_code_that_would_be_too_small_to_read_is_not_printed():
    with pytest.raises(LabelFailed, match="5 mm is too small"):
        label("size 20 20\nqr 1 1 5 | {device_id} {cert_sha256}").zpl()
    with pytest.raises(LabelFailed, match="printable"):
        _ = label("size 20 20\nqr 1 1 19 | {device_id} {serial}", serial="a\nb").text


@pytest.mark.parametrize("serial", ["SEN-1", "", "a b"])
def test_the_shape_of_a_label_fits_every_label_and_finds_its_device(serial):
    made = label("size 90 90\nqr 1 1 80 | v1 {device_id} [{spki_sha256}] {serial}", serial=serial)
    shape = made.template.qr.phrase.shape()
    found = shape.fullmatch(made.text)
    assert found is not None
    assert found[1] == "sn-0001"
    assert shape.fullmatch("sn-0001") is None
    assert load_template(None).qr.phrase.shape().fullmatch("sn-0001") is None
    assert shape.fullmatch(made.text.replace("v1", "v2")) is None


def test_a_network_printer_gets_the_whole_label():
    made, got = label(), []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def accept() -> None:
            connection, _ = server.accept()
            with connection:
                got.append(b"".join(iter(lambda: connection.recv(4096), b"")))

        thread = threading.Thread(target=accept)
        thread.start()
        printer = open_printer(f"tcp://127.0.0.1:{server.getsockname()[1]}")
        printer.print("sn-0001", made)
        thread.join(10)
    assert got == [made.zpl().encode()]
    with pytest.raises(LabelFailed, match="did not take the label of sn-0001: Connection refused"):
        printer.print("sn-0001", made)


def test_a_program_prints_what_is_on_its_standard_input(tmp_path):
    made = label()
    open_printer(["sh", "-c", f"cat > {tmp_path}/out"]).print("sn-0001", made)
    assert (tmp_path / "out").read_text() == made.zpl()
    with pytest.raises(LabelFailed, match="ended with 3 for the label of sn-0001: no paper"):
        open_printer(["sh", "-c", "cat > /dev/null; echo no paper >&2; exit 3"]).print("sn-0001", made)
    with pytest.raises(LabelFailed, match="No such file"):
        open_printer(["no-such-program-here"]).print("sn-0001", made)


def test_a_folder_gets_both_for_its_owner_alone(tmp_path):
    made = label()
    open_printer(f"file:{tmp_path}/labels").print("sn-0001", made)
    assert (tmp_path / "labels/sn-0001.zpl").read_text() == made.zpl()
    assert (tmp_path / "labels/sn-0001.png").read_bytes() == made.png()
    assert stat.S_IMODE((tmp_path / "labels/sn-0001.png").stat().st_mode) == 0o600
    (tmp_path / "full").write_text("a file")
    with pytest.raises(LabelFailed, match="cannot write"):
        open_printer(f"file:{tmp_path}/full/labels").print("sn-0001", made)


@pytest.mark.parametrize(
    "where", ["lp", "tcp://host", "tcp://:9100", "tcp://u@h:1", "tcp://h:1/x", "tcp://h:99999", "file:", ""]
)
def test_a_printer_that_is_none_is_refused(where):
    with pytest.raises(ValueError, match="tcp://HOST:PORT"):
        open_printer(where)


def test_a_printer_is_what_its_name_says():
    assert open_printer("tcp://127.0.0.1:9100") == NetworkPrinter("127.0.0.1", 9100)
    assert open_printer(("lp", "-o", "raw")) == ProgramPrinter(("lp", "-o", "raw"))
    assert isinstance(open_printer("file:/tmp/labels"), FolderPrinter)
