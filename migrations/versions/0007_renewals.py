"""Renew a worker's lease without writing again what it runs."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007_renewals"
down_revision = "0006_second_checks"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("workers", sa.Column("observed_revision", sa.BigInteger(), nullable=True))
    op.execute("UPDATE workers SET observed_revision = (document ->> 'observed_revision')::bigint")
    op.alter_column("workers", "observed_revision", nullable=False)
    op.add_column("workers", sa.Column("adapters_digest", sa.Text(), nullable=True))


def downgrade() -> None:
    op.drop_column("workers", "adapters_digest")
    op.drop_column("workers", "observed_revision")
