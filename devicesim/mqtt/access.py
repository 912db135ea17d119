"""Who may say and hear what at a broker: one table, from which every kind of broker is configured.

The name is the CN of the client's certificate. Whatever the table does not allow is denied. Stations and announcers are
named one by one: by a pattern, any device could speak as a station of its own name. Speakers may hear themselves,
because on MQTT 3.1.1 only that proves that something was published.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from devicesim.mqtt.topics import DOMAIN, VERSION, identifier

Action = Literal["read", "write"]
Role = Literal["anyone", "station", "announcer", "reader"]


@dataclass(frozen=True, slots=True)
class Rule:
    """What a role may do: `access` on `topic` below the root, where `%u` is the client's own name."""

    role: Role
    access: Literal["read", "write", "readwrite"]
    topic: str


RULES: tuple[Rule, ...] = (
    Rule("anyone", "readwrite", "d/%u/evt/+"),
    Rule("anyone", "readwrite", "d/%u/presence"),
    Rule("anyone", "read", "d/%u/identity"),
    Rule("station", "readwrite", "s/%u/evt/+"),
    Rule("station", "readwrite", "s/%u/presence"),
    Rule("announcer", "readwrite", "d/+/identity"),
    Rule("announcer", "readwrite", "ca/+/evt/+"),
    Rule("reader", "read", "#"),
)


@dataclass(frozen=True, slots=True)
class Access:
    """The names behind the roles of one broker."""

    stations: tuple[str, ...] = ()
    announcers: tuple[str, ...] = ()
    readers: tuple[str, ...] = ()
    domain: str = DOMAIN

    def __post_init__(self) -> None:
        for name in (*self.stations, *self.announcers, *self.readers, self.domain):
            identifier(name)

    def allows(self, name: str, action: Action, topic: str) -> bool:
        """Tell whether `name` may publish to (`write`), or subscribe to and receive (`read`), a topic or filter."""
        return any(
            action in rule.access and _covers(self._filter(rule).replace("%u", name), topic)
            for rule in RULES
            if self._has_role(name, rule.role)
        )

    def mosquitto_acl(self) -> str:
        """Write the table as mosquitto's ACL file."""
        lines = [f"pattern {rule.access} {self._filter(rule)}" for rule in RULES if rule.role == "anyone"]
        for role, names in self._named().items():
            for name in names:
                lines += [f"user {name}"] + [
                    f"topic {rule.access} {self._filter(rule).replace('%u', name)}"
                    for rule in RULES
                    if rule.role == role
                ]
        return "\n".join(lines) + "\n"

    def _filter(self, rule: Rule) -> str:
        return f"{self.domain}/{VERSION}/{rule.topic}"

    def _named(self) -> dict[Role, tuple[str, ...]]:
        return {"station": self.stations, "announcer": self.announcers, "reader": self.readers}

    def _has_role(self, name: str, role: Role) -> bool:
        return role == "anyone" or name in self._named()[role]


def _covers(allowed: str, asked: str) -> bool:
    """Tell whether every topic that `asked` (a topic or a filter) stands for is within the filter `allowed`."""
    mine, theirs = allowed.split("/"), asked.split("/")
    for index, level in enumerate(mine):
        if level == "#":
            return True
        if index >= len(theirs) or theirs[index] == "#" or (level != "+" and level != theirs[index]):
            return False
    return len(mine) == len(theirs)
