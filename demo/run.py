"""The main job, end to end: a batch of devices makes its keys, enrols over EST and announces itself.

`make demo` runs it; every step is a command that you could type, and the exit status says whether all of them did what
they should. Everything happens in one temporary directory, on loopback.
"""

from __future__ import annotations

import argparse
import csv
import os
import shutil
import signal
import socket
import ssl
import sys
from base64 import b64encode
from http.client import HTTPSConnection
from pathlib import Path

from stage import BIN, DemoFailed, Stage

HERE = Path(__file__).parent
STATION, ANNOUNCER, READER = "s-07", "estserver", "registry"
OTP_UNIT, IDEVID_UNIT = "gw-0007", "gw-0008"
RENEWED_UNIT, REVOKED_UNIT = "sn-0001", "sn-0002"
SPARE_UNIT = "sn-9001"


class Demo:
    """The story, a method a chapter."""

    def __init__(self, stage: Stage, broker_kind: str) -> None:
        self.stage = stage
        self.broker_kind = broker_kind
        self.home = stage.place / "home"
        self.trust = self.home / "root.pem"
        self.server = ""
        self.broker = ""
        with (HERE / "units.csv").open(newline="", encoding="utf-8") as file:
            self.units = [row["device_id"] for row in csv.DictReader(file)]

    def tell(self) -> None:
        """Run all chapters."""
        self.found()
        self.identities()
        self.start_broker()
        self.prepare_batch()
        self.listen()
        self.provision()
        self.match()
        self.renew()
        self.lose_an_answer()
        self.revoke()
        self.run_again()
        self.close()

    # --- chapters ---------------------------------------------------------------------------------------------------

    def found(self) -> None:
        """Make the PKI home and serve it."""
        self.stage.step("A PKI home: root, issuing CA, manufacturer CA, profiles, inventory; then the EST server")
        port = _free_port()
        self.broker = f"mqtts://127.0.0.1:{port}"
        made = self.stage.json(
            "estserver", "init", self.home, "--name", "Estline Demo", "--idevid", "--broker", self.broker
        )
        self.stage.say(f"root fingerprint {made['root_sha256'][:47]}…")
        self.server = self.stage.start("server", "estserver", "serve", "--home", self.home, "--listen", "127.0.0.1:0")
        self.stage.say(f"{self.server} answers")

    def identities(self) -> None:
        """Enrol everybody who is no device: nobody gets a certificate but over EST."""
        self.stage.step("Certificates for broker, station, announcer and subscriber, over EST like everybody's")
        local = ("--name", "dns:localhost", "--name", "ip:127.0.0.1")
        self.enrol("broker", "server", *local, san=("dns:localhost", "ip:127.0.0.1"))
        self.enrol(STATION, "station")
        self.enrol(READER, "service")
        self.enrol(ANNOUNCER, "service", out=self.home / "mqtt")

    def start_broker(self) -> None:
        """Start mosquitto if it is installed, else the embedded broker; both ask for client certificates."""
        self.stage.step("The MQTT broker, with client certificates")
        files = self.stage.place / "broker"
        roles = ("--station", STATION, "--announcer", ANNOUNCER, "--reader", READER)
        listen = ("--kind", self.broker_kind, "--listen", self.broker.removeprefix("mqtts://"))
        tls = ("--cert", files / "cert.pem", "--key", files / "key.pem", "--trust", self.trust)
        self.stage.say(self.stage.start("broker", "devicesim", "broker", "run", *listen, *tls, *roles))
        for name in ("server", "broker"):
            self.stage.say(f"log of the {name}: {self.stage.place / name}.log")

    def prepare_batch(self) -> None:
        """Say who may enrol what, and set the station up."""
        self.stage.step(f"A batch of {len(self.units)} units: most through the station, one by password, one by IDevID")
        place = self.stage.place
        for name in ("batch.toml", "units.csv"):
            shutil.copy(HERE / name, place / name)
        (place / "secrets").mkdir()
        listed = [unit for unit in self.units if unit not in (OTP_UNIT, IDEVID_UNIT)]
        (place / "station-units.txt").write_text("\n".join([*listed, SPARE_UNIT]) + "\n", encoding="utf-8")
        self.stage.run(
            "estserver", "station", "add", STATION, "--devices", place / "station-units.txt", *self.at_home()
        )
        self.credential(OTP_UNIT, "gateway", place / "secrets" / f"{OTP_UNIT}.password")
        self.bear(IDEVID_UNIT)
        station = place / STATION
        self.stage.run(
            *("devicesim", "line", "init", place / "line", "--site", "demo", "--line", "l1", "--station", STATION),
            *("--est", self.server, "--trust", self.trust, "--cert", station / "cert.pem"),
            *("--key", station / "key.pem", "--mqtt", self.broker),
        )
        self.stage.run("devicesim", "line", "check", place / "batch.toml")
        self.stage.say(f"one-time password for {OTP_UNIT}, factory birth certificate for {IDEVID_UNIT}: ready")

    def provision(self) -> None:
        """Run the line; it shows its own progress and table."""
        self.stage.step("The line runs: key on the device → csrattrs → CSR → simpleenroll → check → install → announce")
        self.stage.run("devicesim", "line", "run", self.stage.place / "batch.toml", *self.at_line(), show=True)

    def listen(self) -> None:
        """Start the subscriber before anything is announced."""
        reader = self.stage.place / READER
        self.stage.start(
            *("subscriber", "devicesim", "announce", "match", "--broker", self.broker, "--cert", reader / "cert.pem"),
            *("--key", reader / "key.pem", "--trust", self.trust, "--devices", self.stage.place / "units.csv"),
            *("--timeout", "120"),
        )

    def match(self) -> None:
        """Hear from the subscriber whether station, devices and server say the same."""
        self.stage.step("The subscriber matches the station's signed events with births and retained identities")
        for line in self.stage.result("subscriber"):
            self.stage.say(line)

    def renew(self) -> None:
        """Renew one device with a new key; the old certificate authenticates."""
        self.stage.step(f"{RENEWED_UNIT} renews its certificate with a new key")
        store = self.device(RENEWED_UNIT)
        before = (store / "cert.pem").read_bytes()
        done = self.stage.json("devicesim", "est", "reenroll", *self.target(), "--out", store)
        if (store / "cert.pem").read_bytes() == before:
            raise DemoFailed("the renewal changed nothing")
        self.stage.say(f"new serial {done['serial']}")

    def lose_an_answer(self) -> None:
        """Post a CSR and hang up before the answer; the same request again gets the very certificate that was lost."""
        self.stage.step("An answer is lost on purpose; the retry gets the same bytes")
        csr = self.stage.place / f"{SPARE_UNIT}.csr"
        self.stage.run(
            *("devicesim", "csr", "new", "--subject", f"CN={SPARE_UNIT}"),
            *("--key", self.stage.place / f"{SPARE_UNIT}.key", "--out", csr),
        )
        self.post(csr, read=False)
        while not (lost := self.stage.json("estserver", "inventory", "list", "--device", SPARE_UNIT, *self.at_home())):
            pass
        first, second = self.post(csr), self.post(csr)
        serials = self.stage.json("estserver", "inventory", "list", "--device", SPARE_UNIT, *self.at_home())
        if first != second or len(serials) != 1 or not first:
            raise DemoFailed("a repeated request did not get the same certificate")
        self.stage.say(f"one certificate, serial {lost[0]['serial']}, three requests")

    def revoke(self) -> None:
        """Revoke a device; it is refused at its next request."""
        self.stage.step(f"{REVOKED_UNIT} is revoked, and refused")
        self.stage.run("estserver", "revoke", "--device", REVOKED_UNIT, "--reason", "keyCompromise", *self.at_home())
        told = self.stage.run(
            *("devicesim", "est", "reenroll", *self.target(), "--out", self.device(REVOKED_UNIT)), expect=7
        )
        if "revoked" not in told:
            raise DemoFailed(f"refused, but not for being revoked: {told}")
        self.stage.say(told.strip().splitlines()[-1])

    def run_again(self) -> None:
        """Run the same batch again: nothing is provisioned twice."""
        self.stage.step("The same batch once more: nothing is provisioned twice")
        before = self.certificates()
        self.stage.run("devicesim", "line", "run", self.stage.place / "batch.toml", *self.at_line())
        if (after := self.certificates()) != before:
            raise DemoFailed(f"the second run issued {after - before} certificates")
        self.stage.say(f"still {before} certificates")

    def close(self) -> None:
        """Check the records, and say where everything is."""
        self.stage.step("What is left")
        audit = self.stage.json("estserver", "audit", "verify", *self.at_home())
        place = self.stage.place
        self.stage.say(f"audit chain  {audit['rows']} rows, unbroken")
        self.stage.say(f"PKI home     {self.home}  (inventory: {self.home / 'estserver.db'})")
        self.stage.say(f"line         {place / 'line'}  (ledger, report.json, devices)")
        if self.stage.keep:
            self.invite()

    def invite(self) -> None:
        """Name commands to try against what is still running."""
        pids = " ".join(str(process.pid) for process in self.stage.background.values())
        reader = self.stage.place / READER
        print(f"""
Server and broker are running. Try:
  {BIN}/estserver inventory list --home {self.home}
  {BIN}/estserver policy show device --home {self.home}
  {BIN}/devicesim est csrattrs --server {self.server} --trust {self.trust}
  {BIN}/devicesim announce tail --broker {self.broker} --cert {reader}/cert.pem --key {reader}/key.pem \\
      --trust {self.trust}
  curl --cacert {self.trust} {self.server}/cacerts
End them with: kill {pids}""")

    # --- parts ------------------------------------------------------------------------------------------------------

    def at_home(self) -> tuple[str | Path, ...]:
        """Name the home."""
        return ("--home", self.home)

    def at_line(self) -> tuple[str | Path, ...]:
        """Name the station's configuration."""
        return ("--config", self.stage.place / "line" / "line.toml")

    def target(self) -> tuple[str | Path, ...]:
        """Name the EST server and what to trust."""
        return ("--server", self.server, "--trust", self.trust)

    def device(self, unit: str) -> Path:
        """Return where a simulated device keeps its identity."""
        return self.stage.place / "line" / "devices" / unit

    def certificates(self) -> int:
        """Count what the inventory holds."""
        return len(self.stage.json("estserver", "inventory", "list", "--limit", "1000", *self.at_home()))

    def credential(self, name: str, label: str, file: Path, *options: str) -> None:
        """Make a one-time credential and put its secret into a file."""
        made = self.stage.json("estserver", "credential", "add", name, "--label", label, *options, *self.at_home())
        Stage.secret(file, made["secret"])

    def enrol(
        self,
        name: str,
        label: str,
        *options: str,
        san: tuple[str, ...] = (),
        subject: str = "",
        out: Path | None = None,
        trust: Path | None = None,
    ) -> None:
        """Enrol one identity with a one-time credential of its own."""
        file = self.stage.place / f"{name}-{label}.otp"
        self.credential(name, label, file, *options)
        names = [part for value in san for part in ("--san", value)]
        self.stage.run(
            *("devicesim", "est", "enroll", "--server", self.server, "--trust", trust or self.trust),
            *("--label", label, "--user", name),
            *("--password-file", file, "--subject", subject or name, *names, "--out", out or self.stage.place / name),
        )
        self.stage.say(f"{name}: profile {label}")

    def bear(self, unit: str) -> None:
        """Give a unit its factory birth certificate, and let that manufacturer's devices in."""
        place, maker = self.stage.place, self.home / "idevid-root.pem"
        both = place / "maker-trust.pem"
        both.write_bytes(self.trust.read_bytes() + maker.read_bytes())
        self.enrol(unit, "idevid", subject=f"serialNumber={unit}", out=place / "idevid", trust=both)
        for name, suffix in (("cert.pem", "pem"), ("key.pem", "key")):
            shutil.copy(place / "idevid" / name, place / "secrets" / f"{unit}-idevid.{suffix}")
        self.stage.run("estserver", "trust", "add", "demo-maker", maker, "--devices", "gw-*", *self.at_home())

    def post(self, csr: Path, *, read: bool = True) -> bytes:
        """Post a CSR as the station, by hand; hang up without reading when told to."""
        context = ssl.create_default_context(cafile=str(self.trust))
        station = self.stage.place / STATION
        context.load_cert_chain(station / "cert.pem", station / "key.pem")
        host, port = self.server.removeprefix("https://").split("/", 1)[0].rsplit(":", 1)
        connection = HTTPSConnection(host, int(port), context=context, timeout=10)
        body = b64encode(_der(csr.read_bytes()))
        connection.request("POST", "/.well-known/est/simpleenroll", body, {"Content-Type": "application/pkcs10"})
        try:
            return connection.getresponse().read() if read else b""
        finally:
            connection.close()


def _der(pem: bytes) -> bytes:
    return ssl.PEM_cert_to_DER_cert(pem.decode().replace("CERTIFICATE REQUEST", "CERTIFICATE").replace("NEW ", ""))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def main() -> int:
    """Run the demonstration; 0 when every step did what it should."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--keep", action="store_true", help="leave server and broker running")
    parser.add_argument("--broker", choices=("auto", "mosquitto", "embedded"), default="auto")
    arguments = parser.parse_args()
    stage = Stage(keep=arguments.keep)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        Demo(stage, arguments.broker).tell()
    except DemoFailed as failure:
        print(f"\nthe demonstration failed: {failure}\neverything it made is in {stage.place}", file=sys.stderr)
        return 1
    finally:
        if not stage.keep or sys.exc_info()[0] is not None:
            for name in list(stage.background):
                stage.stop(name)
    return 0


if __name__ == "__main__":
    os.umask(0o077)
    sys.exit(main())
