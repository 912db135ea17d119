"""A dry run: everything a run would need, tried one after the other, with nothing written and nothing enrolled.

Each check uses what the run itself uses, so that both agree. What cannot be tried because something before it failed is
skipped, and said so; a rehearsal passes when every check has.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from enum import StrEnum
from pathlib import Path

from devicesim.errors import ConfigInvalid, DeviceSimError, StorageError, VerificationFailed
from devicesim.line.assembly import mqtt_identity, open_ledger
from devicesim.line.batch import Batch, ByIdevid, ByOneTimePassword, ByStation, load_batch
from devicesim.line.findings import InputInvalid, errors_of
from devicesim.line.labelling import open_labels
from devicesim.line.leases import allotted
from devicesim.line.settings import Settings, load_settings
from devicesim.line.station import Station, read_identity, read_password
from devicesim.line.steps import ClockCheck, World
from devicesim.mqtt.connection import BrokerUrl, MqttConnection
from devicesim.trust import CMC_RA, extended_key_usage, may_authenticate_client
from devicesim.wishes import LocalPolicy, choose_key_type

SOON = timedelta(days=1)
UNIT_BYTES = 64 << 10
"""What a unit takes on the disk: its store of small files, and its rows in the ledger with their journal."""
SPARE_BYTES = 64 << 20
TEXTS_SHOWN = 5


class Outcome(StrEnum):
    """What a check says."""

    PASS = "PASS"  # noqa: S105 - no password
    FAIL = "FAIL"
    SKIP = "SKIP"


@dataclass(frozen=True, slots=True)
class Checked:
    """One line of a rehearsal.

    Attributes:
        advice: what to do about it; empty when nothing is to be done.
        exit_code: what a run would end with because of it; 0 when it passes.
    """

    name: str
    outcome: Outcome
    text: str
    advice: str = ""
    exit_code: int = 0


class _Missing(Exception):
    """A check needs what an earlier one was to bring."""


@dataclass
class Rehearsal:
    """The checks of one run, in the order in which a run would meet them."""

    batch_file: Path
    config: Path
    lease_file: Path | None
    world: World
    _batch: Batch | None = field(default=None, init=False)
    _part: Batch | None = field(default=None, init=False)
    _settings: Settings | None = field(default=None, init=False)
    _station: Station | None = field(default=None, init=False)
    _is_alone: bool = field(default=False, init=False)

    def checks(self) -> Iterator[Checked]:
        """Try everything, yielding each result as it is known."""
        for name, check in self._all():
            try:
                yield Checked(name, Outcome.PASS, check())
            except _Missing as missing:
                yield Checked(name, Outcome.SKIP, f"not tried: {missing} first")
            except InputInvalid as error:
                errors = errors_of(error.findings)
                more = f"; and {len(errors) - TEXTS_SHOWN} more" if len(errors) > TEXTS_SHOWN else ""
                text = "; ".join(map(str, errors[:TEXTS_SHOWN])) + more
                yield Checked(name, Outcome.FAIL, text, "correct the file", error.exit_code)
            except DeviceSimError as error:
                yield Checked(name, Outcome.FAIL, str(error), error.advice, error.exit_code)

    def _all(self) -> tuple[tuple[str, Callable[[], str]], ...]:
        return (
            ("batch", self._check_batch),
            ("settings", self._check_settings),
            ("lease", self._check_lease),
            ("ledger", self._check_ledger),
            ("disk", self._check_disk),
            ("certificate", self._check_certificate),
            ("credentials", self._check_credentials),
            ("est server", self._check_server),
            ("clock", self._check_clock),
            ("csr attributes", self._check_wishes),
            ("broker", self._check_broker),
            ("labels", self._check_labels),
        )

    # --- what was read before ---------------------------------------------------------------------------------------

    @property
    def part(self) -> Batch:
        """What the station is to make."""
        if self._part is None:
            raise _Missing("the batch and its lease must be in order")
        return self._part

    @property
    def settings(self) -> Settings:
        """The station's settings."""
        if self._settings is None:
            raise _Missing("the settings must be in order")
        return self._settings

    @property
    def station(self) -> Station:
        """The station's certificate and trust."""
        if self._station is None:
            raise _Missing("the station's certificate must be in order")
        return self._station

    # --- the checks -------------------------------------------------------------------------------------------------

    def _check_batch(self) -> str:
        self._batch = load_batch(self.batch_file)
        warned = f", {len(self._batch.warnings)} warnings (see `devicesim line check`)" if self._batch.warnings else ""
        return f"{self._batch.id}, {len(self._batch.units)} units{warned}"

    def _check_settings(self) -> str:
        self._settings = load_settings(self.config)
        site = self._settings.site
        return f"site {site.id}, line {site.line}, station {site.station}, {site.slots} slots"

    def _check_lease(self) -> str:
        if self._batch is None:
            raise _Missing("the batch must be in order")
        self._part = allotted(self._batch, self.lease_file, self.settings.site.station)
        span = self._part.span
        return f"units {span}" if span else "none needed: the whole batch"

    def _check_ledger(self) -> str:
        with open_ledger(self.settings, self.world) as ledger, ledger.exclusive():
            self._is_alone = True
            part = self.part
            if ledger.rehearse_batch(part):
                return f"{len(part.units)} new units, none of which it has"
            mine = {unit.device_id for unit in part.units}
            left = sum(not row.passed for row in ledger.units(part.id) if row.device_id in mine)
            return f"has this batch: {left} of {len(mine)} units are to be made"

    def _check_disk(self) -> str:
        needed = SPARE_BYTES + UNIT_BYTES * len(self.part.units)
        for path in {self.settings.ledger.path.parent, _existing(self.settings.key.devices)}:
            free = shutil.disk_usage(path).free
            if free < needed:
                raise StorageError(
                    f"{path} has {free >> 20} MiB left; the batch may take {needed >> 20}", advice="make room first"
                )
        return f"room for what the batch may take, {needed >> 20} MiB"

    def _check_certificate(self) -> str:
        station = Station.load(self.settings, file=self.config)
        certificate, now = station.identity.certificates[0], self.world.clock()
        renew = "enrol the station anew (`devicesim est reenroll`)"
        ends = certificate.not_valid_after_utc
        if not certificate.not_valid_before_utc <= now < ends:
            raise VerificationFailed(
                f"the station's certificate is valid from {certificate.not_valid_before_utc:%Y-%m-%d %H:%M} to"
                f" {ends:%Y-%m-%d %H:%M} UTC, which is not now",
                advice=renew,
            )
        asks = self._part is None or any(isinstance(unit.enrol_by, ByStation) for unit in self._part.units)
        if asks and CMC_RA not in extended_key_usage(certificate):
            raise VerificationFailed(
                "the station's certificate does not make it a registration authority (no id-kp-cmcRA)",
                advice="enrol it under the label for stations",
            )
        if not may_authenticate_client(certificate):
            raise VerificationFailed("the station's certificate is not one for TLS clients", advice=renew)
        self._station = station
        soon = f" (soon: {renew})" if ends - now < SOON else ""
        return f"CN={station.settings.site.station}, its key, valid until {ends:%Y-%m-%d %H:%M} UTC{soon}"

    def _check_credentials(self) -> str:
        count = 0
        for unit in self.part.units:
            by = unit.enrol_by
            try:
                if isinstance(by, ByOneTimePassword):
                    read_password(by.password_file)
                elif isinstance(by, ByIdevid):
                    read_identity(by.cert, by.key)
            except DeviceSimError as error:
                raise ConfigInvalid(f"{unit.device_id}: {error}", advice=error.advice) from error
            count += not isinstance(by, ByStation)
        return f"{count} units ask for themselves" if count else "the station asks for every unit"

    def _check_server(self) -> str:
        own, units = self.settings.est.label, self._part.units if self._part else ()
        labels = sorted({unit.label or own for unit in units} or {own})
        for label in labels:
            with self.station.open_est(label, ByStation()) as est:
                est.cacerts()
        return f"{self.settings.est.url} is trusted; labels: {', '.join(label or '(none)' for label in labels)}"

    def _check_clock(self) -> str:
        clock, server_at = self.settings.clock, self.station.server_time()
        check = ClockCheck(clock.floor, clock.max_skew.total_seconds(), server_at, self.world.ticks())
        check.check(self.world.clock(), self.world.ticks())
        return (
            "agrees with the EST server's" if server_at else "is after the floor; the EST server does not say its time"
        )

    def _check_wishes(self) -> str:
        own = self.settings.key.alg
        kinds = sorted({(unit.label or self.settings.est.label, unit.key_type or own) for unit in self.part.units})
        told = []
        for label, kind in kinds:
            with self.station.open_est(label, ByStation()) as est:
                chosen = choose_key_type(est.csrattrs().key, kind, LocalPolicy())
            instead = f" instead of {kind}" if chosen != kind else ""
            told.append(f"{label or '(no label)'}: {chosen}{instead}")
        return "; ".join(told)

    def _check_broker(self) -> str:
        settings = self.settings
        if settings.mqtt is None:
            return "none: nothing is announced"
        if not self._is_alone:  # a broker ends the connection of a run under the same name
            raise _Missing("the ledger must be there, and no run on it")
        url, station = BrokerUrl.parse(settings.mqtt.url), self.station
        MqttConnection(url, mqtt_identity(station.settings, settings.mqtt)).close()
        return f"{url} takes {settings.site.station}"

    def _check_labels(self) -> str:
        label = self.settings.label
        if label is None:
            return "none"
        made = open_labels(label, self.settings.site)
        scanned = "scanned back: `line open`" if label.scan_back else "not scanned back"
        return f"{made.template.width_mm:g} x {made.template.height_mm:g} mm, {scanned}"


def _existing(path: Path) -> Path:
    """Return a folder, or the nearest above it that exists."""
    return path if path.exists() else _existing(path.absolute().parent)
