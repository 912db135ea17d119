"""Requesters: credentials without a name, and single IDevIDs that are blocked."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.add_column("credential", sa.Column("nameless", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.create_index("ix_credential_nameless", "credential", ["verifier"])
    op.create_table(
        "blocked_idevid",
        sa.Column("spki_sha256", sa.String(64), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("spki_sha256"),
    )
