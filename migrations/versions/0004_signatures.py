"""Keep signatures with versions, and which aliases want one."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0004_signatures"
down_revision = "0003_blob_uses"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column(
        "adapter_versions",
        sa.Column("signature", postgresql.JSONB(none_as_null=True, astext_type=sa.Text()), nullable=True),
    )
    op.create_table(
        "alias_policies",
        sa.Column("adapter", sa.String(length=128, collation="C"), nullable=False),
        sa.Column("alias", sa.String(length=128, collation="C"), nullable=False),
        sa.Column("public_keys", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.ForeignKeyConstraint(["adapter"], ["adapters.name"], name=op.f("fk_alias_policies_adapters")),
        sa.PrimaryKeyConstraint("adapter", "alias", name=op.f("pk_alias_policies")),
    )


def downgrade() -> None:
    op.drop_table("alias_policies")
    op.drop_column("adapter_versions", "signature")
