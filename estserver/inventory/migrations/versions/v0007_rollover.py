"""Rollover: which key signed a certificate, what became of the CAs, and who was given what of them."""

import sqlalchemy as sa
from alembic import op
from cryptography import x509

revision = "0007"
down_revision = "0006"

ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
BATCH = 1000


def upgrade() -> None:
    op.add_column("certificate", sa.Column("issuer", sa.String(64), nullable=False, server_default=""))
    op.create_table(
        "rollover",
        sa.Column("id", ID, nullable=False),
        sa.Column("ca", sa.String(64), nullable=False),
        sa.Column("tier", sa.String(8), nullable=False),
        sa.Column("stage", sa.String(8), nullable=False),
        sa.Column("key_kind", sa.String(16), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("old", sa.LargeBinary(), nullable=False),
        sa.Column("new", sa.LargeBinary()),
        sa.Column("new_with_old", sa.LargeBinary()),
        sa.Column("old_with_new", sa.LargeBinary()),
        sa.Column("issuing", sa.LargeBinary()),
        sa.Column("started_at", sa.BigInteger(), nullable=False),
        sa.Column("stage_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    still_open = sa.text("stage <> 'retire'")
    op.create_index(
        "ix_rollover_open", "rollover", ["ca"], unique=True, sqlite_where=still_open, postgresql_where=still_open
    )
    op.create_table(
        "cacerts_fetch",
        sa.Column("device", sa.String(64), nullable=False),
        sa.Column("ca", sa.String(64), nullable=False),
        sa.Column("answer_sha256", sa.String(64), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("device", "ca"),
    )
    _find_issuers()


def _find_issuers() -> None:
    """Read from every certificate which key signed it."""
    connection, last = op.get_bind(), 0
    table = sa.table("certificate", sa.column("id"), sa.column("certificate_der"), sa.column("issuer"))
    page = sa.select(table.c.id, table.c.certificate_der).order_by(table.c.id).limit(BATCH)
    while rows := connection.execute(page.where(table.c.id > last)).all():
        last = rows[-1].id
        for row in rows:
            issuer = _issuer(bytes(row.certificate_der))
            if issuer:
                connection.execute(sa.update(table).where(table.c.id == row.id).values(issuer=issuer))


def _issuer(der: bytes) -> str:
    try:
        certificate = x509.load_der_x509_certificate(der)
        authority = certificate.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value
    except (ValueError, x509.ExtensionNotFound):
        return ""
    return (authority.key_identifier or b"").hex()
