"""The tables, and with them the rules that hold whatever the code does. It knows no transaction.

    registry_head 1 row ── events, audit_entries            one row per event, one per committed write
    base_models ─┬─ base_model_parents
                 └─ adapters ─── adapter_versions ─┬─ aliases ─── alias_targets, alias_policies
                                  └─ parent ───────┘     └─ alias_changes    never compacted
    blob_uses                                               files that someone was told are here
    requests                                                answers kept for repeated requests
    tokens                                                  hashes of secrets, never the secrets
    workers                                                 leases; not part of any revision

Every constraint has a name: conflicts are told apart by it. Names sort by their bytes (collation C), so that pages
come in the same order on every server.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, ClassVar

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    DateTime,
    Double,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    MetaData,
    String,
    Text,
    UniqueConstraint,
    false,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

NAMES = {
    "pk": "pk_%(table_name)s",
    "fk": "fk_%(table_name)s_%(referred_table_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
}
Json = Any  # what a JSONB column holds: dict, list, str, number, bool or None

# `adapter.names` lets a name have 128 characters.
Name = String(128, collation="C")
# "sha256:" and 64 hex digits.
Digest = String(71, collation="C")
Time = DateTime(timezone=True)


class Table(DeclarativeBase):
    """The base of every table."""

    metadata = MetaData(naming_convention=NAMES)
    type_annotation_map: ClassVar = {int: BigInteger, str: Text, datetime: Time, bool: Boolean, float: Double}


class RegistryHead(Table):
    """The one row that every write locks: revisions are dense and in the order of commit because of it."""

    __tablename__ = "registry_head"
    __table_args__ = (
        CheckConstraint("id = 1", name="single"),
        CheckConstraint("compacted_revision BETWEEN 0 AND revision", name="compacted"),
    )

    id: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    store_id: Mapped[str]
    revision: Mapped[int] = mapped_column(server_default=text("0"))
    compacted_revision: Mapped[int] = mapped_column(server_default=text("0"))


class EventRow(Table):
    """One event. `base_model` is what watchers filter by; the document is the whole of `resources.Event`."""

    __tablename__ = "events"

    revision: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    ordinal: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    base_model: Mapped[str] = mapped_column(Name)
    document: Mapped[Json] = mapped_column(JSONB)


class AuditRow(Table):
    """One committed write; `before` and `after` are documents."""

    __tablename__ = "audit_entries"
    __table_args__ = (Index(None, "adapter", "revision"), Index(None, "actor", "revision"))

    revision: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    time: Mapped[datetime]
    actor: Mapped[str]
    action: Mapped[str]
    resource: Mapped[str]
    adapter: Mapped[str | None] = mapped_column(Name)
    request_id: Mapped[str]
    message: Mapped[str]
    before: Mapped[Json | None] = mapped_column(JSONB(none_as_null=True))
    after: Mapped[Json] = mapped_column(JSONB)


class RequestRow(Table):
    """The answer to a request id, given again to a repeat with the same content."""

    __tablename__ = "requests"

    request_id: Mapped[str] = mapped_column(primary_key=True)
    action: Mapped[str]
    content_digest: Mapped[str] = mapped_column(Digest)
    answer: Mapped[Json] = mapped_column(JSONB)
    create_time: Mapped[datetime] = mapped_column(server_default=text("now()"))


class BaseModelRow(Table):
    """A base model; immutable."""

    __tablename__ = "base_models"

    name: Mapped[str] = mapped_column(Name, primary_key=True)
    digest: Mapped[str] = mapped_column(Digest, index=True)
    config_digest: Mapped[str] = mapped_column(Digest)
    weights_digest: Mapped[str] = mapped_column(Digest)
    tokenizer_digest: Mapped[str] = mapped_column(Digest)
    architecture: Mapped[str]
    manifest: Mapped[Json] = mapped_column(JSONB)
    modules: Mapped[Json] = mapped_column(JSONB, deferred=True)
    create_time: Mapped[datetime]
    revision: Mapped[int]


class BaseModelParentRow(Table):
    """One edge of a base model's lineage; the parent need not be registered."""

    __tablename__ = "base_model_parents"
    __table_args__ = (
        CheckConstraint("relation IN ('finetune', 'quantized', 'merge', 'adapter_merge')", name="relation"),
        CheckConstraint("(relation = 'adapter_merge') = (adapter_version <> '')", name="adapter_version"),
    )

    child: Mapped[str] = mapped_column(
        Name, ForeignKey(BaseModelRow.name, name="fk_base_model_parents_child"), primary_key=True
    )
    ordinal: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    parent: Mapped[str] = mapped_column(Name, index=True)
    relation: Mapped[str]
    adapter_version: Mapped[str] = mapped_column(index=True)


class AdapterRow(Table):
    """A line of versions. `latest_version` is the counter that keeps their numbers dense."""

    __tablename__ = "adapters"
    __table_args__ = (
        Index(None, "base_model", "name"),
        CheckConstraint("latest_version >= 0", name="latest_version"),
    )

    name: Mapped[str] = mapped_column(Name, primary_key=True)
    base_model: Mapped[str] = mapped_column(Name, ForeignKey(BaseModelRow.name))
    latest_version: Mapped[int] = mapped_column(Integer)
    create_time: Mapped[datetime]


class VersionRow(Table):
    """One immutable upload; only its state ever changes."""

    __tablename__ = "adapter_versions"
    __table_args__ = (
        UniqueConstraint("adapter", "digest"),
        ForeignKeyConstraint(
            ["parent_adapter", "parent_number"],
            ["adapter_versions.adapter", "adapter_versions.number"],
            name="fk_adapter_versions_parent",
        ),
        Index(None, "parent_adapter", "parent_number"),
        # Versions by the files that they need.
        Index(None, "manifest", postgresql_using="gin", postgresql_ops={"manifest": "jsonb_path_ops"}),
        CheckConstraint("number >= 1", name="number"),
        CheckConstraint("state IN ('registered', 'validated', 'rejected', 'retired')", name="state"),
        CheckConstraint(
            "CASE state WHEN 'rejected' THEN rejection_reasons <> '[]' WHEN 'retired' THEN true "
            "ELSE rejection_reasons = '[]' END",
            name="rejected",
        ),
        CheckConstraint("(parent_adapter IS NULL) = (parent_number IS NULL)", name="parent"),
        CheckConstraint("(parent_adapter, parent_number) IS DISTINCT FROM (adapter, number)", name="own_parent"),
    )

    adapter: Mapped[str] = mapped_column(Name, ForeignKey(AdapterRow.name), primary_key=True)
    number: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    digest: Mapped[str] = mapped_column(Digest, index=True)
    manifest: Mapped[Json] = mapped_column(JSONB)
    rank: Mapped[int] = mapped_column(Integer)
    alpha: Mapped[float]
    target_modules: Mapped[Json] = mapped_column(JSONB)
    features: Mapped[Json] = mapped_column(JSONB)
    state: Mapped[str]
    rejection_reasons: Mapped[Json] = mapped_column(JSONB)
    signature: Mapped[Json | None] = mapped_column(JSONB(none_as_null=True))
    parent_adapter: Mapped[str | None] = mapped_column(Name)
    parent_number: Mapped[int | None] = mapped_column(Integer)
    provenance: Mapped[Json] = mapped_column(JSONB)
    size_bytes: Mapped[int]
    create_time: Mapped[datetime]
    revision: Mapped[int]


class AliasRow(Table):
    """A movable name."""

    __tablename__ = "aliases"

    adapter: Mapped[str] = mapped_column(Name, ForeignKey(AdapterRow.name), primary_key=True)
    alias: Mapped[str] = mapped_column(Name, primary_key=True)
    protected: Mapped[bool] = mapped_column(server_default=false())
    revision: Mapped[int]
    update_time: Mapped[datetime]


class AliasPolicyRow(Table):
    """What an alias wants of a version; the alias need not exist yet."""

    __tablename__ = "alias_policies"

    adapter: Mapped[str] = mapped_column(Name, ForeignKey(AdapterRow.name), primary_key=True)
    alias: Mapped[str] = mapped_column(Name, primary_key=True)
    public_keys: Mapped[Json] = mapped_column(JSONB)


class AliasTargetRow(Table):
    """A version that an alias points at; more than one is a split."""

    __tablename__ = "alias_targets"
    __table_args__ = (
        ForeignKeyConstraint(["adapter", "alias"], ["aliases.adapter", "aliases.alias"]),
        ForeignKeyConstraint(["adapter", "version"], ["adapter_versions.adapter", "adapter_versions.number"]),
        CheckConstraint("weight BETWEEN 1 AND 10000", name="weight"),
        Index(None, "adapter", "version"),
    )

    adapter: Mapped[str] = mapped_column(Name, primary_key=True)
    alias: Mapped[str] = mapped_column(Name, primary_key=True)
    version: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    weight: Mapped[int] = mapped_column(Integer)
    shadow: Mapped[bool] = mapped_column(server_default=false())


class AliasChangeRow(Table):
    """One entry of an alias's history."""

    __tablename__ = "alias_changes"
    __table_args__ = (ForeignKeyConstraint(["adapter", "alias"], ["aliases.adapter", "aliases.alias"]),)

    adapter: Mapped[str] = mapped_column(Name, primary_key=True)
    alias: Mapped[str] = mapped_column(Name, primary_key=True)
    revision: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    before: Mapped[Json] = mapped_column(JSONB)
    after: Mapped[Json] = mapped_column(JSONB)
    actor: Mapped[str]
    time: Mapped[datetime]
    message: Mapped[str]


class TokenRow(Table):
    """A bearer token. Its rights never change; it ends by `expire_time` or `revoke_time`."""

    __tablename__ = "tokens"
    __table_args__ = (UniqueConstraint("secret_hash"), UniqueConstraint("revision"))

    id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(Name)
    secret_hash: Mapped[str]
    scopes: Mapped[Json] = mapped_column(JSONB)
    adapters: Mapped[Json] = mapped_column(JSONB)
    aliases: Mapped[Json] = mapped_column(JSONB)
    create_time: Mapped[datetime]
    expire_time: Mapped[datetime | None]
    revoke_time: Mapped[datetime | None]
    revision: Mapped[int]


class BlobUseRow(Table):
    """When someone was last told that a stored file is here, or brought it."""

    __tablename__ = "blob_uses"

    digest: Mapped[str] = mapped_column(Digest, primary_key=True)
    time: Mapped[datetime]


class WorkerRow(Table):
    """What a worker last said, and until when it may be believed. What changes with a renewal has its own columns, so
    that the document, which may be large, is not written again."""

    __tablename__ = "workers"
    __table_args__ = (Index(None, "base_model", "id"),)

    id: Mapped[str] = mapped_column(Name, primary_key=True)
    base_model: Mapped[str]
    document: Mapped[Json] = mapped_column(JSONB)
    observed_revision: Mapped[int]
    adapters_digest: Mapped[str | None]
    report_time: Mapped[datetime]
    lease_end: Mapped[datetime]
