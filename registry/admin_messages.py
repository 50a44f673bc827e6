"""Tokens, the audit log and lineages as protobuf messages, and back; like `registry.messages`, for the service and the
client alone."""

from __future__ import annotations

from loraplex.registry.v1 import registry_service_pb2 as pb
from registry.errors import InvalidRequest
from registry.messages import read_enum, read_optional_time, read_time, write_enum, write_time
from registry.resources import (
    AuditEntry,
    Lineage,
    LineageDirection,
    LineageEdge,
    LineageKey,
    LineageKind,
    LineageNode,
    Scope,
    Token,
)


def write_token(token: Token) -> pb.Token:
    """The token without its secret, which nobody keeps."""
    return pb.Token(
        id=token.id,
        name=token.name,
        scopes=[one.value for one in token.scopes],
        adapters=token.adapters,
        aliases=token.aliases,
        create_time=write_time(token.create_time),
        expire_time=write_time(token.expire_time),
        revoke_time=write_time(token.revoke_time),
    )


def read_token(message: pb.Token) -> Token:
    """Raises InvalidRequest for a scope that this release does not know."""
    try:
        scopes = tuple(Scope(one) for one in message.scopes)
    except ValueError as error:
        raise InvalidRequest(f"expected scopes that this release knows, found {error}") from error
    return Token(
        id=message.id,
        name=message.name,
        scopes=scopes,
        adapters=tuple(message.adapters),
        aliases=tuple(message.aliases),
        create_time=read_optional_time(message, "create_time"),
        expire_time=read_optional_time(message, "expire_time"),
        revoke_time=read_optional_time(message, "revoke_time"),
    )


def write_audit_entry(entry: AuditEntry) -> pb.AuditEntry:
    """One committed write."""
    return pb.AuditEntry(
        revision=entry.revision,
        time=write_time(entry.time),
        actor=entry.actor,
        action=entry.action,
        resource=entry.resource,
        request_id=entry.request_id,
        before=entry.before,
        after=entry.after,
        message=entry.message,
    )


def read_audit_entry(message: pb.AuditEntry) -> AuditEntry:
    """One committed write."""
    return AuditEntry(
        revision=message.revision,
        time=read_time(message.time),
        actor=message.actor,
        action=message.action,
        resource=message.resource,
        request_id=message.request_id,
        before=message.before,
        after=message.after,
        message=message.message,
    )


def write_lineage(lineage: Lineage) -> pb.GetLineageResponse:
    """The whole walk."""
    kinds = pb.LineageKind
    return pb.GetLineageResponse(
        nodes=[
            pb.LineageNode(id=one.key.id, kind=write_enum(kinds, one.key.kind, "LINEAGE_KIND_"), digest=one.digest)
            for one in lineage.nodes
        ],
        edges=[
            pb.LineageEdge(
                child=one.child.id,
                child_kind=write_enum(kinds, one.child.kind, "LINEAGE_KIND_"),
                parent=one.parent.id,
                parent_kind=write_enum(kinds, one.parent.kind, "LINEAGE_KIND_"),
                relation=one.relation,
            )
            for one in lineage.edges
        ],
        truncated=lineage.is_truncated,
    )


def read_lineage(message: pb.GetLineageResponse) -> Lineage:
    """The whole walk."""

    def key(kind: int, name: str) -> LineageKey:
        return LineageKey(read_enum(LineageKind, pb.LineageKind, kind, "LINEAGE_KIND_"), name)

    return Lineage(
        nodes=tuple(LineageNode(key(one.kind, one.id), one.digest) for one in message.nodes),
        edges=tuple(
            LineageEdge(key(one.child_kind, one.child), key(one.parent_kind, one.parent), one.relation)
            for one in message.edges
        ),
        is_truncated=message.truncated,
    )


def write_direction(direction: LineageDirection) -> pb.LineageDirection:
    """Which way a walk goes."""
    found: pb.LineageDirection = write_enum(pb.LineageDirection, direction, "LINEAGE_DIRECTION_")
    return found


def read_direction(direction: int) -> LineageDirection:
    """Which way a walk goes; unspecified means ANCESTORS."""
    given = direction or pb.LINEAGE_DIRECTION_ANCESTORS
    return read_enum(LineageDirection, pb.LineageDirection, given, "LINEAGE_DIRECTION_")
