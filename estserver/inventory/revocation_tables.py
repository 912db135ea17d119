"""The tables of revocation: narrow, and beside the wide `certificate`, so that a list is read by one index alone."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Index, Integer, LargeBinary, String, Table, Text

from estserver.inventory.schema import Id, Instant, SerialHex, metadata

revocation = Table(
    "revocation",
    metadata,
    Column("seq", Id, primary_key=True),
    Column("issuer", String(64), nullable=False),
    Column("serial", SerialHex, nullable=False),
    Column("at", Instant, nullable=False),
    Column("reason", String(32), nullable=False),
    Column("not_after", Instant, nullable=False),
)
"""What a list says of a certificate, in the order in which it was committed; `issuer` is a key identifier."""
Index("ix_revocation_issuer", revocation.c.issuer, revocation.c.seq)

crl = Table(
    "crl",
    metadata,
    Column("issuer", String(64), primary_key=True),
    Column("last_number", BigInteger, nullable=False),
    Column("builder", String(64)),
    Column("building_until", Instant),
    Column("number", BigInteger),
    Column("this_update", Instant),
    Column("next_update", Instant),
    Column("regular_at", Instant),
    Column("covers", Id),
    Column("entries", BigInteger),
    Column("size_bytes", BigInteger),
)
"""The newest list of each issuer's key, and the greatest number that any list of it ever had."""

crl_part = Table(
    "crl_part",
    metadata,
    Column("issuer", String(64), primary_key=True),
    Column("number", BigInteger, primary_key=True),
    Column("part", Integer, primary_key=True),
    Column("octets", LargeBinary, nullable=False),
)

blocked_device = Table(
    "blocked_device",
    metadata,
    Column("device", String(64), primary_key=True),
    Column("at", Instant, nullable=False),
    Column("reason", String(32), nullable=False),
    Column("actor", Text, nullable=False),
)
"""Devices that get no certificate whoever vouches for them, until an operator lifts that."""

anchor_crl = Table(
    "anchor_crl",
    metadata,
    Column("anchor", String(64), primary_key=True),
    Column("source", Text, nullable=False),
    Column("missing", String(8), nullable=False),
    Column("this_update", Instant),
    Column("next_update", Instant),
    Column("entries", BigInteger),
    Column("tried_at", Instant),
    Column("problem", Text),
)
"""Where the list of a manufacturer's CA comes from, what counts without one, and the list there is."""

anchor_revoked = Table(
    "anchor_revoked",
    metadata,
    Column("anchor", String(64), primary_key=True),
    Column("serial", Text, primary_key=True),
    sqlite_with_rowid=False,
)
"""Who is on these lists, in hexadecimal: a foreign serial has any length."""
