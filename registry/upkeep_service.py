"""UpkeepService: protobuf in, protobuf out."""

from __future__ import annotations

from typing import Any

from google.protobuf.duration_pb2 import Duration

from loraplex.registry.v1 import upkeep_service_pb2 as pb
from loraplex.registry.v1.upkeep_service_pb2_grpc import UpkeepServiceServicer
from registry.errors import InvalidRequest
from registry.store.compaction import Compaction, Keep

# mypy-protobuf's own context type is private to each stub.
Context = Any


class UpkeepService(UpkeepServiceServicer):
    """Compaction of events."""

    def __init__(self, compaction: Compaction, keep: Keep) -> None:
        """`keep` is what stays when a caller does not say."""
        self._compaction = compaction
        self._keep = keep

    async def CompactEvents(self, request: pb.CompactEventsRequest, context: Context) -> pb.CompactEventsResponse:
        keep = Keep(
            revisions=request.keep_revisions if request.HasField("keep_revisions") else self._keep.revisions,
            age_s=_seconds(request.keep, "keep") if request.HasField("keep") else self._keep.age_s,
        )
        done = await self._compaction.run(keep)
        return pb.CompactEventsResponse(
            compacted_revision=done.compacted_revision, revision=done.revision, removed_events=done.removed_events
        )


# A longer time than any registry will run, and one that Postgres can subtract from now.
MAX_S = 100 * 365 * 86_400


def _seconds(duration: Duration, field: str) -> float:
    seconds = duration.seconds + duration.nanos / 1e9
    if not 0 <= seconds <= MAX_S:
        raise InvalidRequest(f"{field}: expected 0 s to {MAX_S} s, found {seconds:g} s", field=field)
    return seconds
