"""Limits: the buckets that requests are paid from."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.create_table(
        "bucket",
        sa.Column("key", sa.String(64), nullable=False),
        sa.Column("full_at_microseconds", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("key"),
        sqlite_with_rowid=False,
    )
