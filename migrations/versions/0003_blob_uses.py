"""Make the table of uses of stored files, and find versions by the files that they need."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003_blob_uses"
down_revision = "0002_tokens"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "blob_uses",
        sa.Column("digest", sa.String(length=71, collation="C"), nullable=False),
        sa.Column("time", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("digest", name=op.f("pk_blob_uses")),
    )
    op.create_index(
        op.f("ix_adapter_versions_manifest"),
        "adapter_versions",
        ["manifest"],
        postgresql_using="gin",
        postgresql_ops={"manifest": "jsonb_path_ops"},
    )


def downgrade() -> None:
    op.drop_index(op.f("ix_adapter_versions_manifest"), table_name="adapter_versions")
    op.drop_table("blob_uses")
