"""Make the registry's tables."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "audit_entries",
        sa.Column("revision", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("time", sa.DateTime(timezone=True), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("resource", sa.Text(), nullable=False),
        sa.Column("adapter", sa.String(length=128, collation="C"), nullable=True),
        sa.Column("request_id", sa.Text(), nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("before", postgresql.JSONB(none_as_null=True, astext_type=sa.Text()), nullable=True),
        sa.Column("after", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.PrimaryKeyConstraint("revision", name=op.f("pk_audit_entries")),
    )
    op.create_index(op.f("ix_audit_entries_actor_revision"), "audit_entries", ["actor", "revision"], unique=False)
    op.create_index(op.f("ix_audit_entries_adapter_revision"), "audit_entries", ["adapter", "revision"], unique=False)
    op.create_table(
        "base_models",
        sa.Column("name", sa.String(length=128, collation="C"), nullable=False),
        sa.Column("digest", sa.String(length=71, collation="C"), nullable=False),
        sa.Column("config_digest", sa.String(length=71, collation="C"), nullable=False),
        sa.Column("weights_digest", sa.String(length=71, collation="C"), nullable=False),
        sa.Column("tokenizer_digest", sa.String(length=71, collation="C"), nullable=False),
        sa.Column("architecture", sa.Text(), nullable=False),
        sa.Column("manifest", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("modules", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("create_time", sa.DateTime(timezone=True), nullable=False),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_base_models")),
    )
    op.create_index(op.f("ix_base_models_digest"), "base_models", ["digest"], unique=False)
    op.create_table(
        "events",
        sa.Column("revision", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("ordinal", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("base_model", sa.String(length=128, collation="C"), nullable=False),
        sa.Column("document", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.PrimaryKeyConstraint("revision", "ordinal", name=op.f("pk_events")),
    )
    op.create_table(
        "registry_head",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("store_id", sa.Text(), nullable=False),
        sa.Column("revision", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("compacted_revision", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.CheckConstraint("compacted_revision BETWEEN 0 AND revision", name=op.f("ck_registry_head_compacted")),
        sa.CheckConstraint("id = 1", name=op.f("ck_registry_head_single")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_registry_head")),
    )
    op.create_table(
        "requests",
        sa.Column("request_id", sa.Text(), nullable=False),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("content_digest", sa.String(length=71, collation="C"), nullable=False),
        sa.Column("answer", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("create_time", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("request_id", name=op.f("pk_requests")),
    )
    op.create_table(
        "workers",
        sa.Column("id", sa.String(length=128, collation="C"), nullable=False),
        sa.Column("base_model", sa.Text(), nullable=False),
        sa.Column("document", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("report_time", sa.DateTime(timezone=True), nullable=False),
        sa.Column("lease_end", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_workers")),
    )
    op.create_index(op.f("ix_workers_base_model_id"), "workers", ["base_model", "id"], unique=False)
    op.create_table(
        "adapters",
        sa.Column("name", sa.String(length=128, collation="C"), nullable=False),
        sa.Column("base_model", sa.String(length=128, collation="C"), nullable=False),
        sa.Column("latest_version", sa.Integer(), nullable=False),
        sa.Column("create_time", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("latest_version >= 0", name=op.f("ck_adapters_latest_version")),
        sa.ForeignKeyConstraint(["base_model"], ["base_models.name"], name=op.f("fk_adapters_base_models")),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_adapters")),
    )
    op.create_index(op.f("ix_adapters_base_model_name"), "adapters", ["base_model", "name"], unique=False)
    op.create_table(
        "base_model_parents",
        sa.Column("child", sa.String(length=128, collation="C"), nullable=False),
        sa.Column("ordinal", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("parent", sa.String(length=128, collation="C"), nullable=False),
        sa.Column("relation", sa.Text(), nullable=False),
        sa.Column("adapter_version", sa.Text(), nullable=False),
        sa.CheckConstraint(
            "(relation = 'adapter_merge') = (adapter_version <> '')", name=op.f("ck_base_model_parents_adapter_version")
        ),
        sa.CheckConstraint(
            "relation IN ('finetune', 'quantized', 'merge', 'adapter_merge')",
            name=op.f("ck_base_model_parents_relation"),
        ),
        sa.ForeignKeyConstraint(["child"], ["base_models.name"], name="fk_base_model_parents_child"),
        sa.PrimaryKeyConstraint("child", "ordinal", name=op.f("pk_base_model_parents")),
    )
    op.create_index(
        op.f("ix_base_model_parents_adapter_version"), "base_model_parents", ["adapter_version"], unique=False
    )
    op.create_index(op.f("ix_base_model_parents_parent"), "base_model_parents", ["parent"], unique=False)
    op.create_table(
        "adapter_versions",
        sa.Column("adapter", sa.String(length=128, collation="C"), nullable=False),
        sa.Column("number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("digest", sa.String(length=71, collation="C"), nullable=False),
        sa.Column("manifest", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("rank", sa.Integer(), nullable=False),
        sa.Column("alpha", sa.Double(), nullable=False),
        sa.Column("target_modules", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("features", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("rejection_reasons", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("parent_adapter", sa.String(length=128, collation="C"), nullable=True),
        sa.Column("parent_number", sa.Integer(), nullable=True),
        sa.Column("provenance", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("create_time", sa.DateTime(timezone=True), nullable=False),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        sa.CheckConstraint(
            "state IN ('registered', 'validated', 'rejected', 'retired')", name=op.f("ck_adapter_versions_state")
        ),
        sa.CheckConstraint(
            "(parent_adapter IS NULL) = (parent_number IS NULL)", name=op.f("ck_adapter_versions_parent")
        ),
        sa.CheckConstraint(
            "(parent_adapter, parent_number) IS DISTINCT FROM (adapter, number)",
            name=op.f("ck_adapter_versions_own_parent"),
        ),
        sa.CheckConstraint("number >= 1", name=op.f("ck_adapter_versions_number")),
        sa.ForeignKeyConstraint(["adapter"], ["adapters.name"], name=op.f("fk_adapter_versions_adapters")),
        sa.ForeignKeyConstraint(
            ["parent_adapter", "parent_number"],
            ["adapter_versions.adapter", "adapter_versions.number"],
            name="fk_adapter_versions_parent",
        ),
        sa.PrimaryKeyConstraint("adapter", "number", name=op.f("pk_adapter_versions")),
        sa.UniqueConstraint("adapter", "digest", name=op.f("uq_adapter_versions_adapter_digest")),
    )
    op.create_index(op.f("ix_adapter_versions_digest"), "adapter_versions", ["digest"], unique=False)
    op.create_index(
        op.f("ix_adapter_versions_parent_adapter_parent_number"),
        "adapter_versions",
        ["parent_adapter", "parent_number"],
        unique=False,
    )
    op.create_table(
        "aliases",
        sa.Column("adapter", sa.String(length=128, collation="C"), nullable=False),
        sa.Column("alias", sa.String(length=128, collation="C"), nullable=False),
        sa.Column("protected", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        sa.Column("update_time", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["adapter"], ["adapters.name"], name=op.f("fk_aliases_adapters")),
        sa.PrimaryKeyConstraint("adapter", "alias", name=op.f("pk_aliases")),
    )
    op.create_table(
        "alias_changes",
        sa.Column("adapter", sa.String(length=128, collation="C"), nullable=False),
        sa.Column("alias", sa.String(length=128, collation="C"), nullable=False),
        sa.Column("revision", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("before", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("after", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("time", sa.DateTime(timezone=True), nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["adapter", "alias"], ["aliases.adapter", "aliases.alias"], name=op.f("fk_alias_changes_aliases")
        ),
        sa.PrimaryKeyConstraint("adapter", "alias", "revision", name=op.f("pk_alias_changes")),
    )
    op.create_table(
        "alias_targets",
        sa.Column("adapter", sa.String(length=128, collation="C"), nullable=False),
        sa.Column("alias", sa.String(length=128, collation="C"), nullable=False),
        sa.Column("version", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("weight", sa.Integer(), nullable=False),
        sa.Column("shadow", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.CheckConstraint("weight BETWEEN 1 AND 10000", name=op.f("ck_alias_targets_weight")),
        sa.ForeignKeyConstraint(
            ["adapter", "alias"], ["aliases.adapter", "aliases.alias"], name=op.f("fk_alias_targets_aliases")
        ),
        sa.ForeignKeyConstraint(
            ["adapter", "version"],
            ["adapter_versions.adapter", "adapter_versions.number"],
            name=op.f("fk_alias_targets_adapter_versions"),
        ),
        sa.PrimaryKeyConstraint("adapter", "alias", "version", name=op.f("pk_alias_targets")),
    )
    op.create_index(op.f("ix_alias_targets_adapter_version"), "alias_targets", ["adapter", "version"], unique=False)
    # The identity of this store; a revision means something only together with it.
    op.execute("INSERT INTO registry_head (id, store_id) VALUES (1, gen_random_uuid()::text)")


def downgrade() -> None:
    op.drop_index(op.f("ix_alias_targets_adapter_version"), table_name="alias_targets")
    op.drop_table("alias_targets")
    op.drop_table("alias_changes")
    op.drop_table("aliases")
    op.drop_index(op.f("ix_adapter_versions_parent_adapter_parent_number"), table_name="adapter_versions")
    op.drop_index(op.f("ix_adapter_versions_digest"), table_name="adapter_versions")
    op.drop_table("adapter_versions")
    op.drop_index(op.f("ix_base_model_parents_parent"), table_name="base_model_parents")
    op.drop_index(op.f("ix_base_model_parents_adapter_version"), table_name="base_model_parents")
    op.drop_table("base_model_parents")
    op.drop_index(op.f("ix_adapters_base_model_name"), table_name="adapters")
    op.drop_table("adapters")
    op.drop_index(op.f("ix_workers_base_model_id"), table_name="workers")
    op.drop_table("workers")
    op.drop_table("requests")
    op.drop_table("registry_head")
    op.drop_table("events")
    op.drop_index(op.f("ix_base_models_digest"), table_name="base_models")
    op.drop_table("base_models")
    op.drop_index(op.f("ix_audit_entries_adapter_revision"), table_name="audit_entries")
    op.drop_index(op.f("ix_audit_entries_actor_revision"), table_name="audit_entries")
    op.drop_table("audit_entries")
