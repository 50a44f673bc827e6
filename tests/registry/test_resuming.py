"""An upload goes on where it broke: over real gRPC, and after the registry was killed."""

from __future__ import annotations

import asyncio
import hashlib
import signal
from pathlib import Path
from typing import Any

import grpc
import pytest

from loraplex.registry.v1 import registry_service_pb2 as pb
from loraplex.registry.v1 import registry_service_pb2_grpc as rpcs
from registry.client import RegistryClient
from registry.errors import RegistryError
from rpc.channel import connect

CHUNK = 2**20
DATA = bytes(range(256)) * (8 * CHUNK // 256) + b"the end"
DIGEST = f"sha256:{hashlib.sha256(DATA).hexdigest()}"
HEADER = pb.BlobHeader(digest=DIGEST, size_bytes=len(DATA))


@pytest.fixture
def large(tmp_path: Path) -> Path:
    (tmp_path / "large").write_bytes(DATA)
    return tmp_path / "large"


async def begin(stub: Any, count: int, spool: Path) -> Any:
    """Sends the header and so many chunks, and returns the open call once some of them are on disk."""
    call = stub.UploadBlob()
    await call.write(pb.UploadBlobRequest(header=HEADER))
    for number in range(count):
        await call.write(pb.UploadBlobRequest(chunk=DATA[number * CHUNK : (number + 1) * CHUNK]))
    async with asyncio.timeout(20):
        while sum(path.stat().st_size for path in spool.iterdir()) < 2 * CHUNK:
            await asyncio.sleep(0)
    return call


async def received(stub: Any) -> int:
    """What the registry has of the file and nobody writes to."""
    found = await stub.FindMissingBlobs(pb.FindMissingBlobsRequest(blobs=[HEADER]), timeout=20)
    assert list(found.digests) == [DIGEST]
    return next((one.received_bytes for one in found.partial), 0)


async def until_received(stub: Any) -> int:
    async with asyncio.timeout(20):
        while not (count := await received(stub)):
            pass
    return count


async def test_an_upload_goes_on_where_its_stream_broke(registry_server, client, large, tmp_path):
    call = await begin(registry_server.stub, 5, registry_server.settings.data_dir / "blobs" / "tmp")
    call.cancel()
    count = await until_received(registry_server.stub)
    assert 0 < count <= 5 * CHUNK
    told: list[int] = []
    assert await client.upload_blob(large, digest=DIGEST, size_bytes=len(DATA), on_bytes=told.append)
    assert told[0] > count
    assert told[-1] == len(DATA)
    await client.read_blob(DIGEST, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == DATA


async def test_an_upload_goes_on_after_the_registry_was_killed(registry_process, database_url, large, tmp_path):
    registry_process.database_url = database_url
    await asyncio.to_thread(registry_process.start)
    async with grpc.aio.insecure_channel(registry_process.address) as channel:
        tmp = registry_process.data_dir / "blobs" / "tmp"
        await begin(rpcs.RegistryServiceStub(channel), 6, tmp)
        registry_process.end(signal.SIGKILL)
    await asyncio.to_thread(registry_process.start)
    async with RegistryClient(connect(registry_process.address)) as client:
        told: list[int] = []
        assert await client.upload_blob(large, digest=DIGEST, size_bytes=len(DATA), on_bytes=told.append)
        assert told[0] > CHUNK
        await client.read_blob(DIGEST, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == DATA
    assert list(tmp.iterdir()) == []


async def test_a_wrong_beginning_on_disk_is_found_by_the_digest_and_the_next_upload_is_whole(
    registry_server, client, large
):
    spool = registry_server.settings.data_dir / "blobs" / "tmp"
    (await begin(registry_server.stub, 3, spool)).cancel()
    await until_received(registry_server.stub)
    (part,) = spool.iterdir()
    with part.open("r+b") as file:
        file.write(b"!")
    with pytest.raises(RegistryError, match=r"expected sha256:.*, found sha256:"):
        await client.upload_blob(large, digest=DIGEST, size_bytes=len(DATA))
    assert await received(registry_server.stub) == 0
    assert await client.upload_blob(large, digest=DIGEST, size_bytes=len(DATA))
