"""UpkeepService: protobuf in, protobuf out."""

from __future__ import annotations

from typing import Any

from google.protobuf.duration_pb2 import Duration

from loraplex.registry.v1 import upkeep_service_pb2 as pb
from loraplex.registry.v1.upkeep_service_pb2_grpc import UpkeepServiceServicer
from registry.blobs import BlobStore
from registry.collection import DEFAULT_GRACE_S, MIN_GRACE_S, collect
from registry.errors import InvalidRequest
from registry.store import Store
from registry.store.compaction import Keep
from registry.store.database import Call
from rpc.security import actor

# mypy-protobuf's own context type is private to each stub.
Context = Any


class UpkeepService(UpkeepServiceServicer):
    """Compaction of events, and collection of blobs that no version needs."""

    def __init__(self, store: Store, keep: Keep, blobs: BlobStore) -> None:
        """`keep` is what stays when a caller does not say."""
        self._store = store
        self._keep = keep
        self._blobs = blobs

    async def CompactEvents(self, request: pb.CompactEventsRequest, context: Context) -> pb.CompactEventsResponse:
        keep = Keep(
            revisions=request.keep_revisions if request.HasField("keep_revisions") else self._keep.revisions,
            age_s=_seconds(request.keep, "keep") if request.HasField("keep") else self._keep.age_s,
        )
        done = await self._store.compaction.run(keep)
        if done.removed_events:
            await self._store.audit.add(
                _call("CompactEvents"),
                resource="events",
                before=None,
                after={"compacted_revision": done.compacted_revision, "removed_events": done.removed_events},
            )
        return pb.CompactEventsResponse(
            compacted_revision=done.compacted_revision, revision=done.revision, removed_events=done.removed_events
        )

    async def CollectBlobs(self, request: pb.CollectBlobsRequest, context: Context) -> pb.CollectBlobsResponse:
        grace_s = _seconds(request.grace, "grace") if request.HasField("grace") else DEFAULT_GRACE_S
        if grace_s < MIN_GRACE_S:
            raise InvalidRequest(f"grace: expected at least {MIN_GRACE_S:.0f} s, found {grace_s:g} s", field="grace")
        found = await collect(self._blobs, self._store.blob_uses, grace_s=grace_s, dry_run=request.validate_only)
        if found.count and not request.validate_only:
            await self._store.audit.add(
                _call("CollectBlobs"),
                resource="blobs",
                before=None,
                after={
                    "digests": [one.digest for one in found.named],
                    "count": found.count,
                    "size_bytes": found.size_bytes,
                },
            )
        return pb.CollectBlobsResponse(
            blobs=[pb.CollectedBlob(digest=one.digest, size_bytes=one.size_bytes) for one in found.named],
            count=found.count,
            size_bytes=found.size_bytes,
        )


def _call(action: str) -> Call:
    """By whoever calls; both are harmless to repeat, so they take no request id."""
    return Call(actor(), action, request_id="", content_digest="")


# A longer time than any registry will run, and one that Postgres can subtract from now.
MAX_S = 100 * 365 * 86_400


def _seconds(duration: Duration, field: str) -> float:
    seconds = duration.seconds + duration.nanos / 1e9
    if not 0 <= seconds <= MAX_S:
        raise InvalidRequest(f"{field}: expected 0 s to {MAX_S} s, found {seconds:g} s", field=field)
    return seconds
