"""The `line.toml` that `devicesim line init` writes: what a person is likely to touch, with its meaning beside it."""

from __future__ import annotations


def template(
    *, site: str, line: str, station: str, est: str, trust: str, cert: str, key: str, label: str, mqtt: str | None
) -> str:
    """Write a commented `line.toml`. Values are quoted as TOML basic strings."""
    quoted = {name: _quote(value) for name, value in locals().items() if isinstance(value, str)}
    text = _TEMPLATE.format_map(quoted)
    return _aligned(text + (_MQTT.format_map(quoted) if mqtt else _NO_MQTT))


def _aligned(text: str) -> str:
    """Let all remarks begin in one column, as far as the values leave room."""
    parts = [line.rsplit("  # ", 1) for line in text.splitlines()]
    return "".join(f"{part[0].rstrip():<38}  # {part[1]}\n" if len(part) == 2 else f"{part[0]}\n" for part in parts)


def _quote(text: str) -> str:
    escaped = "".join(f"\\u{ord(c):04x}" if c in '"\\' or ord(c) < 32 or ord(c) == 127 else c for c in text)
    return f'"{escaped}"'


_TEMPLATE = """\
# A provisioning station. Paths are relative to this file; unknown keys are errors.

[site]
id = {site}
line = {line}
station = {station}            # also the common name of the station's certificate
slots = 4                      # units worked on at the same time
# timezone = "Europe/Berlin"
# shifts = {{ early = "06:00", late = "14:00", night = "22:00" }}

[est]
url = {est}
trust = {trust}                # the CA that the EST server and its certificates chain to
cert = {cert}                  # the station's certificate: it asks on behalf of its units (id-kp-cmcRA)
key = {key}                    # readable by nobody else: chmod 600
label = {label}                # where a unit or its product names none
timeout = "10s"
retries = 5                    # after a lost answer: same key, same names, so the same certificate
backoff = "200ms"
backoff_max = "10s"
breaker = 5                    # failures in a row, over all slots, after which one tries and the others wait
# rate = "60/m"                # enrolments at most, over all slots: "10/s", "60/m", "1000/h"

[key]
alg = "EC-P256"                # what a device makes unless its product says otherwise
devices = "devices"            # where the simulated devices keep their keys

[clock]
floor = "build"                # no enrolment before this: "build" or 2027-01-01T00:00:00Z
max_skew = "5m"                # nor further than this from the EST server's clock
warn_skew = "30s"              # further than this is told; and no jump of more than this during a run

[ledger]
path = "line.db"
checkpoint_every = 500         # events between two checkpoints that the station signs
# known_sets = ["l1.set"]      # what other lines have used up: `devicesim ledger export-set`

# [rework]
# old_certificate = "revoke"   # of a unit re-issued or scrapped; "lapse": left to expire

# [label]                      # a label for each unit, scanned back before it passes
# printer = "tcp://127.0.0.1:9100"
# template = "gw2.label"
# scan_back = true

# [hooks.allow]                # who else is asked before a unit gets a certificate
# call = "https://mes.example/allow"   # or a program with its arguments: ["/opt/mes/allow", "--line", "l2"]
# timeout = "2s"
# on_error = "deny"            # "allow": unasked counts as allowed, and is written down

# [hooks.done]                 # who else hears that a unit has passed
# call = "https://mes.example/done"
# on_error = "queue"           # "stop": no further unit until it was heard

# [operators]                  # who works here; scrap and re-issue need two of them
# "op-113" = ["operate", "rework"]
# "op-007" = ["operate", "approve"]
"""
_MQTT = """
[mqtt]
url = {mqtt}
domain = "est"
birth = true                   # each device connects with its new certificate and says so itself
drain = "20s"                  # how long the end of a run waits for the broker
spool_max = 10000              # announcements owed at most; then the line stops until the broker is back
"""
_NO_MQTT = """
# Announce what was provisioned: name a broker.
# [mqtt]
# url = "mqtts://broker.example:8883"
"""
