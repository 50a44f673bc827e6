"""The part of the client that keeps a registry small: `client.upkeep`."""

from __future__ import annotations

from dataclasses import dataclass

import grpc
from google.protobuf.duration_pb2 import Duration

from loraplex.registry.v1 import upkeep_service_pb2 as pb
from loraplex.registry.v1.upkeep_service_pb2_grpc import UpkeepServiceStub
from registry.answers import Compacted
from registry.calls import Calls

# Removing a month of events takes its time, and so does looking at every stored file.
DEADLINE_S = 600.0


@dataclass(frozen=True, slots=True)
class Collected:
    """Answer of `collect`: how many files were removed, or would be, and the digests of at most 1000 of them."""

    digests: tuple[str, ...]
    count: int
    size_bytes: int


class UpkeepClient:
    """UpkeepService over the client's channel."""

    def __init__(self, channel: grpc.aio.Channel, calls: Calls) -> None:
        self._stub = UpkeepServiceStub(channel)
        self._calls = calls

    async def compact(self, *, keep_revisions: int | None = None, keep_s: float | None = None) -> Compacted:
        """Removes old events; what stays is by the registry's settings unless given."""
        request = pb.CompactEventsRequest(keep_revisions=keep_revisions, keep=_duration(keep_s))
        answer = await self._calls.call(self._stub.CompactEvents, request, deadline_s=DEADLINE_S)
        return Compacted(answer.compacted_revision, answer.revision, answer.removed_events)

    async def collect(self, *, grace_s: float | None = None, validate_only: bool = False) -> Collected:
        """Removes stored files that no version needs, but none that was used within the grace, 24 hours by default."""
        request = pb.CollectBlobsRequest(validate_only=validate_only, grace=_duration(grace_s))
        answer = await self._calls.call(self._stub.CollectBlobs, request, deadline_s=DEADLINE_S)
        return Collected(tuple(one.digest for one in answer.blobs), answer.count, answer.size_bytes)


def _duration(seconds: float | None) -> Duration | None:
    if seconds is None:
        return None
    duration = Duration()
    duration.FromNanoseconds(int(seconds * 1e9))
    return duration
