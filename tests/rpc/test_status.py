"""Statuses back to errors: by reason, by a code that has one meaning, or as the tree's root."""

from __future__ import annotations

import grpc
import pytest

from registry import errors
from registry.errors import RegistryError
from rpc.errors import DomainError
from rpc.status import DETAILS_KEY, from_rpc_error, to_status


class NewerError(DomainError):
    """What only a newer server knows."""

    domain = "loraplex.registry"
    code, reason = "FAILED_PRECONDITION", "FROM_THE_FUTURE"


def received(code: str, *, told: DomainError | None = None) -> grpc.aio.AioRpcError:
    """The client's end of a status with a code, and with the details of an error if one is given."""
    trailers = [(DETAILS_KEY, to_status(told).SerializeToString())] if told is not None else []
    return grpc.aio.AioRpcError(grpc.StatusCode[code], grpc.aio.Metadata(), grpc.aio.Metadata(*trailers), "told")


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("UNAVAILABLE", errors.StoreUnavailable),
        ("DEADLINE_EXCEEDED", errors.DeadlineExceeded),
        ("UNAUTHENTICATED", errors.Unauthenticated),
        ("PERMISSION_DENIED", errors.PermissionDenied),
        ("UNIMPLEMENTED", errors.NotImplementedYet),
    ],
)
def test_a_status_of_grpc_itself_becomes_the_class_that_is_all_of_its_code(code, expected):
    assert type(from_rpc_error(received(code), RegistryError)) is expected


@pytest.mark.parametrize("code", ["INTERNAL", "UNKNOWN", "CANCELLED", "NOT_FOUND", "RESOURCE_EXHAUSTED", "DATA_LOSS"])
def test_a_status_that_may_mean_anything_becomes_the_root_with_its_code(code):
    error = from_rpc_error(received(code), RegistryError)
    assert type(error) is RegistryError
    assert (error.code, error.reason, str(error)) == (code, code, "told")


def test_a_reason_that_is_not_known_here_keeps_its_code_and_its_facts():
    newer = NewerError("later", metadata={"version": "sql:3"}, reasons=("a", "b"), field="version")
    error = from_rpc_error(received("FAILED_PRECONDITION", told=newer), RegistryError)
    assert type(error) is RegistryError
    assert (error.code, error.reason) == ("FAILED_PRECONDITION", "FROM_THE_FUTURE")
    assert (error.metadata, error.reasons, error.field) == ({"version": "sql:3"}, ("a", "b"), "version")
    assert RegistryError.code == "INTERNAL"


def test_no_two_classes_are_all_of_one_code():
    leaves = [leaf for leaf in RegistryError.__subclasses__() if leaf.is_all_of_its_code]
    assert len({leaf.code for leaf in leaves}) == len(leaves) > 0
