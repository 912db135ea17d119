"""Revocation: what lists say of a certificate, the lists themselves, blocked devices, and manufacturers' lists."""

import sqlalchemy as sa
from alembic import op

from estserver.key_ids import issuer_key_id

revision = "0006"
down_revision = "0005"

ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
BATCH = 1000


def upgrade() -> None:
    revocation = op.create_table(
        "revocation",
        sa.Column("seq", ID, nullable=False),
        sa.Column("issuer", sa.String(64), nullable=False),
        sa.Column("serial", sa.String(40), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("reason", sa.String(32), nullable=False),
        sa.Column("not_after", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("seq"),
    )
    op.create_index("ix_revocation_issuer", "revocation", ["issuer", "seq"])
    op.create_table(
        "crl",
        sa.Column("issuer", sa.String(64), nullable=False),
        sa.Column("last_number", sa.BigInteger(), nullable=False),
        sa.Column("builder", sa.String(64)),
        sa.Column("building_until", sa.BigInteger()),
        sa.Column("number", sa.BigInteger()),
        sa.Column("this_update", sa.BigInteger()),
        sa.Column("next_update", sa.BigInteger()),
        sa.Column("regular_at", sa.BigInteger()),
        sa.Column("covers", ID),
        sa.Column("entries", sa.BigInteger()),
        sa.Column("size_bytes", sa.BigInteger()),
        sa.PrimaryKeyConstraint("issuer"),
    )
    op.create_table(
        "crl_part",
        sa.Column("issuer", sa.String(64), nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("part", sa.Integer(), nullable=False),
        sa.Column("octets", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("issuer", "number", "part"),
    )
    op.create_table(
        "blocked_device",
        sa.Column("device", sa.String(64), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("reason", sa.String(32), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("device"),
    )
    op.create_table(
        "anchor_crl",
        sa.Column("anchor", sa.String(64), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("missing", sa.String(8), nullable=False),
        sa.Column("this_update", sa.BigInteger()),
        sa.Column("next_update", sa.BigInteger()),
        sa.Column("entries", sa.BigInteger()),
        sa.Column("tried_at", sa.BigInteger()),
        sa.Column("problem", sa.Text()),
        sa.PrimaryKeyConstraint("anchor"),
    )
    op.create_table(
        "anchor_revoked",
        sa.Column("anchor", sa.String(64), nullable=False),
        sa.Column("serial", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("anchor", "serial"),
        sqlite_with_rowid=False,
    )
    _take_over(op.get_bind(), revocation)


def _take_over(connection: sa.Connection, revocation: sa.Table) -> None:
    """Write down what was revoked before this version."""
    names = ("id", "serial", "revoked_at", "revocation_reason", "not_after", "certificate_der")
    certificate = sa.table("certificate", *map(sa.column, names))
    query = sa.select(certificate).where(certificate.c.revoked_at.is_not(None)).order_by(certificate.c.id).limit(BATCH)
    last = 0
    while rows := connection.execute(query.where(certificate.c.id > last)).all():
        last = rows[-1].id
        values = [
            {
                "issuer": issuer_key_id(row.certificate_der),
                "serial": row.serial,
                "at": row.revoked_at,
                "reason": row.revocation_reason,
                "not_after": row.not_after,
            }
            for row in rows
        ]
        connection.execute(revocation.insert(), values)
