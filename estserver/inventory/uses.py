"""The uses of a credential: one for each different request, paid where the request is written down."""

from __future__ import annotations

from sqlalchemy import bindparam, insert, or_, select, update

from estserver.errors import BadCredentials
from estserver.inventory.prepared import Prepared
from estserver.inventory.schema import credential, credential_use
from estserver.inventory.transaction import Transaction

_CREDENTIAL_ID = Prepared(select(credential.c.id).where(credential.c.name == bindparam("spender")))
_USED = Prepared(
    select(credential_use.c.at).where(
        credential_use.c.credential_id == bindparam("id"), credential_use.c.fingerprint == bindparam("same")
    )
)
_SPEND = Prepared(
    update(credential)
    .where(
        credential.c.id == bindparam("spender"),
        or_(credential.c.expires_at.is_(None), credential.c.expires_at > bindparam("now")),
        or_(credential.c.uses.is_(None), credential.c.spent < credential.c.uses),
    )
    .values(spent=credential.c.spent + 1, last_use_at=bindparam("now", type_=credential.c.last_use_at.type))
)
_USE = Prepared(insert(credential_use), ("credential_id", "fingerprint", "at"))


def charge(tx: Transaction, name: str, same: str, *, again: bool) -> None:
    """Spend a use, unless this request has paid for one; `again` when a certificate came of that already.

    Raises:
        BadCredentials: there is no such credential any more, or none that has a use left.
    """
    found = _CREDENTIAL_ID.one(tx.connection, spender=name)
    if found is None:
        raise BadCredentials
    used = _USED.one(tx.connection, id=found.id, same=same) is not None
    if used and not again:
        return
    if _SPEND.run(tx.connection, spender=found.id, now=tx.now) != 1:
        raise BadCredentials
    if not used:
        _USE.run(tx.connection, credential_id=found.id, fingerprint=same, at=tx.now)


_LAST_USE = Prepared(
    update(credential)
    .where(credential.c.name == bindparam("spender"))
    .values(last_use_at=bindparam("now", type_=credential.c.last_use_at.type))
)


def renew(tx: Transaction, name: str) -> None:
    """Let a spent credential authenticate for as long again: only now is there an answer that can be lost."""
    _LAST_USE.run(tx.connection, spender=name, now=tx.now)
