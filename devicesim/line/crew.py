"""Who works at a station, and when: operators by their badge, shifts by the clock on the wall, four eyes.

Rules:
- An operator is named by the id of a badge, in the grammar of every other identifier.
- Where `[operators]` lists who works here, nobody else does, and each may do what their roles say: deny by default.
- What cannot be taken back (scrap, re-issue, key injection) needs a second person, and both must be listed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, time, tzinfo
from enum import StrEnum
from typing import Self

from devicesim.errors import UsageProblem


class Role(StrEnum):
    """What a person may do at a station."""

    OPERATE = "operate"
    REWORK = "rework"
    APPROVE = "approve"


class Act(StrEnum):
    """What a person does that the ledger tells of by name."""

    RUN = "run"
    RETRY = "retry"
    REPRINT = "reprint"
    REVOKED = "revoked"
    REISSUE = "reissue"
    SCRAP = "scrap"
    INJECT = "inject"


_NEEDED: dict[Act, Role] = {
    Act.RUN: Role.OPERATE,
    Act.RETRY: Role.OPERATE,
    Act.REPRINT: Role.REWORK,
    Act.REVOKED: Role.REWORK,
    Act.REISSUE: Role.REWORK,
    Act.SCRAP: Role.REWORK,
    Act.INJECT: Role.REWORK,
}
FOUR_EYES = frozenset({Act.REISSUE, Act.SCRAP, Act.INJECT})


class OperatorRefused(UsageProblem):
    """This person may not do this, or not alone (E-OPERATOR)."""

    code = "operator-refused"
    advice = "ask somebody whom [operators] in line.toml lists for it"


@dataclass(frozen=True, slots=True)
class Shifts:
    """The shifts of a site: each begins at its time of day, there, and lasts until the next one begins."""

    begins: tuple[tuple[time, str], ...] = ()
    zone: tzinfo = UTC

    def at(self, when: datetime) -> str:
        """Return the shift that works at a moment; empty when the site has none."""
        if not self.begins:
            return ""
        clock = when.astimezone(self.zone).time()
        begun = [name for start, name in sorted(self.begins) if start <= clock]
        return begun[-1] if begun else max(self.begins)[1]  # before the first one it is still yesterday's last


@dataclass(frozen=True, slots=True)
class Duty:
    """Who is at the station: an operator, for some acts a second person, and the shifts the clock is read by."""

    operator: str = ""
    second: str = ""
    shifts: Shifts = Shifts()


@dataclass(frozen=True, slots=True)
class Actor:
    """Who did something, where and in which shift: what every attempt and every row of the chain carries."""

    station: str
    site: str = ""
    line: str = ""
    shift: str = ""
    operator: str = ""
    second: str = ""
    slot: int | None = None

    def text(self) -> str:
        """Write it as the chain keeps it; what is not known is left out."""
        known = {name: value for name, value in asdict(self).items() if value not in {"", None}}
        return json.dumps(known, sort_keys=True, separators=(",", ":"))

    @classmethod
    def read(cls, text: str) -> Self:
        """Read what the chain keeps; rows of the first schema name the station alone."""
        return cls(**json.loads(text)) if text.startswith("{") else cls(station=text)


@dataclass(frozen=True, slots=True)
class Crew:
    """The people of a station and their roles; empty where the station keeps no list."""

    roles: Mapping[str, frozenset[Role]] = field(default_factory=dict)

    def admit(self, act: Act, operator: str, second: str = "") -> None:
        """Raise OperatorRefused unless this person, with the second one where two are needed, may do it."""
        if act in FOUR_EYES:
            self._need_two(act, operator, second)
        elif self.roles:
            self._need(operator, _NEEDED[act], act)

    def _need_two(self, act: Act, operator: str, second: str) -> None:
        if not self.roles:
            raise OperatorRefused(
                f"{act} needs two people, and line.toml lists no [operators]", advice="list them with their roles"
            )
        self._need(operator, _NEEDED[act], act)
        if not second:
            raise OperatorRefused(f"{act} needs a second person", advice="who has seen it adds --second BADGE")
        if second == operator:
            raise OperatorRefused(f"{act} needs a second person, and {second} is the first one")
        self._need(second, Role.APPROVE, act)

    def _need(self, operator: str, role: Role, act: Act) -> None:
        if not operator:
            raise OperatorRefused(f"{act} needs to know who does it", advice="add --operator BADGE")
        if operator not in self.roles:
            raise OperatorRefused(f"{operator} is not an operator of this station")
        if role not in self.roles[operator]:
            raise OperatorRefused(f"{operator} has not the role {role!s}, which {act} needs")
