"""Vouched: which certificate stated possession of a key that cannot sign (RFC 9883)."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"

ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "vouched",
        sa.Column("certificate_id", ID, nullable=False),
        sa.Column("voucher", sa.String(40), nullable=False),
        sa.ForeignKeyConstraint(["certificate_id"], ["certificate.id"]),
        sa.PrimaryKeyConstraint("certificate_id"),
    )
    op.create_index("ix_vouched_voucher", "vouched", ["voucher"])
