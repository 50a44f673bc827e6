"""Domain errors to gRPC statuses with google.rpc details, and back. It knows no particular tree.

A status carries ErrorInfo (domain, stable reason, metadata), BadRequest (the field at fault, or one violation per
reason) and RetryInfo where coming back later makes sense.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2, status_pb2

from rpc.errors import DomainError

# The trailing metadata key that gRPC libraries of every language read rich statuses from.
DETAILS_KEY = "grpc-status-details-bin"
# Trailing metadata beyond this is dropped by many HTTP/2 peers, so long lists of reasons are cut.
MAX_REASONS = 50
MAX_REASON_CHARS = 300
# gRPC peers refuse headers over 8 KiB by default; everything else in the details stays well below 2 KiB.
MAX_REASONS_CHARS = 4096

Tree = TypeVar("Tree", bound=DomainError)


def to_status(error: DomainError) -> status_pb2.Status:
    """The google.rpc.Status of an error."""
    status = status_pb2.Status(code=grpc.StatusCode[error.code].value[0], message=str(error)[:MAX_REASON_CHARS])
    status.details.add().Pack(
        error_details_pb2.ErrorInfo(reason=error.reason, domain=error.domain, metadata=error.metadata)
    )
    if error.reasons or error.field:
        violations = [
            error_details_pb2.BadRequest.FieldViolation(field=error.field, description=reason)
            for reason in _cut(error.reasons or (str(error),))
        ]
        status.details.add().Pack(error_details_pb2.BadRequest(field_violations=violations))
    if error.retry_after_s is not None:
        delay = Duration()
        delay.FromNanoseconds(int(error.retry_after_s * 1e9))
        status.details.add().Pack(error_details_pb2.RetryInfo(retry_delay=delay))
    return status


async def abort(context: grpc.aio.ServicerContext[object, object], error: DomainError) -> None:
    """Ends the call with the error's status. Raises what `context.abort` raises."""
    status = to_status(error)
    await context.abort(
        grpc.StatusCode[error.code],
        status.message,
        trailing_metadata=((DETAILS_KEY, status.SerializeToString()),),
    )


def from_rpc_error(error: grpc.aio.AioRpcError, tree: type[Tree]) -> Tree:
    """The class of `tree` that has the status's reason.

    gRPC's own statuses have none, and a newer server's may be unknown here: those become the class that is all of the
    code, where there is one, and otherwise `tree` itself with the status's code and reason.
    """
    info, reasons, field, retry_after_s = error_details_pb2.ErrorInfo(), [], "", None
    for detail in _details(error):
        if detail.Unpack(info):
            continue
        bad_request, retry = error_details_pb2.BadRequest(), error_details_pb2.RetryInfo()
        if detail.Unpack(bad_request):
            reasons = [violation.description for violation in bad_request.field_violations]
            field = next((violation.field for violation in bad_request.field_violations if violation.field), "")
        elif detail.Unpack(retry):
            retry_after_s = retry.retry_delay.ToNanoseconds() / 1e9
    classes = list(_leaves(tree))
    code = error.code().name
    same = [leaf for leaf in classes if leaf.reason == info.reason] if info.reason else []
    # Two trees in one process may share a word, such as UNAUTHENTICATED; the domain tells them apart.
    found = next((leaf for leaf in same if leaf.domain == info.domain), same[0] if same else None)
    if found is None:
        found = next((leaf for leaf in classes if leaf.is_all_of_its_code and leaf.code == code), None)
    translated = (found or tree)(
        error.details() or code,
        metadata=dict(info.metadata),
        reasons=tuple(reasons),
        field=field,
        retry_after_s=retry_after_s,
    )
    if found is None:
        translated.code, translated.reason = code, info.reason or code
    return translated


def _details(error: grpc.aio.AioRpcError) -> Iterator[AnyMessage]:
    for key, value in error.trailing_metadata() or ():
        if key == DETAILS_KEY:
            yield from status_pb2.Status.FromString(value).details


def _cut(reasons: tuple[str, ...]) -> Iterator[str]:
    room = MAX_REASONS_CHARS
    for count, reason in enumerate(reasons):
        line = reason if len(reason) <= MAX_REASON_CHARS else reason[: MAX_REASON_CHARS - 1] + "…"
        room -= len(line)
        if count == MAX_REASONS or room < 0:
            yield f"and {len(reasons) - count} more"
            return
        yield line


def _leaves(tree: type[Tree]) -> Iterator[type[Tree]]:
    for child in tree.__subclasses__():
        yield child
        yield from _leaves(child)
