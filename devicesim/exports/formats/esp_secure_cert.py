"""`esp-secure-cert/<device_id>.csv`: what `configure_esp_secure_cert.py --esp_secure_cert_csv` makes a partition of.

Columns and TLV types after espressif/esp_secure_cert_mgr, "CSV Format in configure_esp_secure_cert.py": PEM as a
`string`, the last five columns empty for what is no private key. The key was made in the device and stays there: there
is no ESP_SECURE_CERT_PRIV_KEY_TLV. The device id is user data 1.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from devicesim.exports.arrays import read_lines, write_lines
from devicesim.exports.files import new_directory
from devicesim.exports.format import Format, Occasion
from devicesim.exports.provisioned import Facts, Provisioned, pem, unpem
from devicesim.exports.tables import read_table, write_table

FOLDER, INDEX = "esp-secure-cert", "devices.txt"
COLUMNS = (
    *("tlv_type", "tlv_subtype", "data_value", "data_type", "priv_key_type", "algorithm", "key_size", "efuse_id"),
    "efuse_key",
)
CA, DEVICE, NAME = "ESP_SECURE_CERT_CA_CERT_TLV", "ESP_SECURE_CERT_DEV_CERT_TLV", "ESP_SECURE_CERT_USER_DATA_1_TLV"


def write(units: Iterator[Provisioned], directory: Path, _: Occasion) -> None:
    """Write a file a device, and in which order they are."""
    folder = new_directory(directory / FOLDER)

    def names() -> Iterator[str]:
        for unit in units:
            rows = ((CA, "".join(map(pem, unit.chain))), (DEVICE, pem(unit.certificate)), (NAME, unit.device_id))
            table = ((kind, "0", value, "string", "", "", "", "", "") for kind, value in rows)
            write_table(folder / f"{unit.device_id}.csv", COLUMNS, table)
            yield unit.device_id

    write_lines(folder / INDEX, names())


def read(directory: Path) -> Iterator[Facts]:
    """Read the files in the order they were written in."""
    for name in read_lines(directory / FOLDER / INDEX):
        values = {row[0]: row[2] for row in read_table(directory / FOLDER / f"{name}.csv", COLUMNS)}
        yield {"device_id": values[NAME], "certificate": unpem(values[DEVICE])[0], "chain": unpem(values[CA])}


FORMAT = Format(
    name="esp-secure-cert",
    title="Espressif esp_secure_cert, one CSV a device, without a key",
    holds=frozenset({"device_id", "certificate", "chain"}),
    write=write,
    read=read,
    limits=("the key is the device's own: there is no private-key entry",),
)
