"""Files to the registry and back, over streams of chunks. Knows digests and offsets, not what the files are."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc

from loraplex.registry.v1 import registry_service_pb2 as pb
from loraplex.registry.v1 import registry_service_pb2_grpc as rpcs
from registry.errors import BlobCorrupted, DeadlineExceeded, RegistryError
from registry.retries import MAX_ATTEMPTS, backoff_s
from rpc.status import from_rpc_error

# The contract's largest chunk.
CHUNK_BYTES = 2**20
# A stream that brings nothing for this long is taken for broken.
STALL_S = 30.0
# How long an upload waits after its header for a registry that knows the file to say so; longer in later attempts.
PATIENCE_S = (0.05, 1.0, 10.0)

OnBytes = Callable[[int], None]
"""Told how many bytes of the file are done."""


async def upload(
    stub: rpcs.RegistryServiceStub, path: Path, *, digest: str, size_bytes: int, on_bytes: OnBytes | None
) -> bool:
    """Stores a file; false when it was there. Goes on from where a broken connection left off.

    Gives up when a few attempts in a row bring nothing. Raises RegistryError, and OSError when the file cannot be read.
    """
    header = pb.BlobHeader(digest=digest, size_bytes=size_bytes)
    failures, most = 0, 0
    while True:
        try:
            offset = await _find_offset(stub, header)
            if offset is None:
                return False
            failures, most = (0, offset) if offset > most else (failures, most)
            header.offset_bytes = offset
            return await _attempt(stub, path, header, on_bytes)
        except RegistryError as error:
            failures += 1
            # OUT_OF_RANGE: what was left of the broken stream is gone, or another one has taken it up.
            if error.code not in ("UNAVAILABLE", "DEADLINE_EXCEEDED", "OUT_OF_RANGE") or failures == MAX_ATTEMPTS:
                raise
            await asyncio.sleep(backoff_s(failures - 1, error))


async def _find_offset(stub: rpcs.RegistryServiceStub, header: pb.BlobHeader) -> int | None:
    """How much of the file the registry has from a stream that broke; None when it has the file."""
    ask: Any = stub.FindMissingBlobs
    try:
        # The registry hashes what it has.
        found = await ask(pb.FindMissingBlobsRequest(blobs=[header]), timeout=STALL_S + header.size_bytes / 100e6)
    except grpc.aio.AioRpcError as error:
        raise from_rpc_error(error, RegistryError) from error
    if not found.digests:
        return None
    return next((one.received_bytes for one in found.partial if one.received_bytes <= header.size_bytes), 0)


async def _attempt(stub: rpcs.RegistryServiceStub, path: Path, header: pb.BlobHeader, on_bytes: OnBytes | None) -> bool:
    for patience_s in PATIENCE_S:
        try:
            is_new = await _upload(stub, path, header, on_bytes, patience_s)
        except grpc.aio.AioRpcError as error:
            # The registry ended the call, with a result or a refusal, while we wrote; grpc.aio then forgets which.
            if error.details() == "Internal error from Core" and patience_s != PATIENCE_S[-1]:
                continue
            raise from_rpc_error(error, RegistryError) from error
        except TimeoutError as error:
            raise DeadlineExceeded(f"{path.name}: the registry took nothing for {STALL_S:.0f} s") from error
        if on_bytes is not None:
            on_bytes(header.size_bytes)
        return is_new
    raise AssertionError("the last attempt returns or raises")


async def _upload(
    stub: rpcs.RegistryServiceStub, path: Path, header: pb.BlobHeader, on_bytes: OnBytes | None, patience_s: float
) -> bool:
    # The generated types know only the style with an iterator; an error of our own in one looks like a cancellation.
    begin: Any = stub.UploadBlob
    call = begin()
    has_answered = asyncio.Event()
    call.add_done_callback(lambda _: has_answered.set())
    try:
        async with asyncio.timeout(STALL_S):
            await call.write(pb.UploadBlobRequest(header=header))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience_s):  # wait_for can swallow a cancellation before Python 3.12
                await has_answered.wait()
        if not has_answered.is_set():
            with contextlib.suppress(asyncio.InvalidStateError):  # It has answered meanwhile.
                await _send(call, path, header.offset_bytes, on_bytes)
        async with asyncio.timeout(STALL_S):
            answer = await call
        return not answer.existed
    finally:
        call.cancel()  # does nothing to a call that has ended


async def _send(call: Any, path: Path, offset: int, on_bytes: OnBytes | None) -> None:
    done = offset
    with path.open("rb") as file:
        file.seek(offset)
        while chunk := await asyncio.to_thread(file.read, CHUNK_BYTES):
            async with asyncio.timeout(STALL_S):
                await call.write(pb.UploadBlobRequest(chunk=chunk))
            done += len(chunk)
            if on_bytes is not None:
                on_bytes(done)
    await call.done_writing()


async def download(
    stub: rpcs.RegistryServiceStub, digest: str, path: Path, *, size_bytes: int | None, on_bytes: OnBytes | None
) -> None:
    """Writes a stored file to a path; it appears there whole, or not at all.

    Goes on from where a broken connection left off, as long as every few attempts bring something. Raises
    RegistryError, and OSError when the file cannot be written.
    """
    part = path.with_name(f"{path.name}.part")
    hasher = hashlib.sha256()
    done, failures = 0, 0
    try:
        with part.open("wb") as file:
            while True:
                call: Any = stub.ReadBlob(pb.ReadBlobRequest(digest=digest, offset_bytes=done))
                try:
                    while chunk := await _next_chunk(call):
                        done, failures = done + len(chunk), 0
                        if size_bytes is not None and done > size_bytes:
                            raise BlobCorrupted(f"{digest}: expected {size_bytes} bytes, received at least {done}")
                        await asyncio.to_thread(_keep, chunk, file, hasher)
                        if on_bytes is not None:
                            on_bytes(done)
                    break
                except RegistryError as error:
                    failures += 1
                    if error.code not in ("UNAVAILABLE", "DEADLINE_EXCEEDED") or failures == MAX_ATTEMPTS:
                        raise
                    await asyncio.sleep(backoff_s(failures - 1, error))
                finally:
                    call.cancel()
            await asyncio.to_thread(_sync, file)
        found = f"sha256:{hasher.hexdigest()}"
        if found != digest:
            raise BlobCorrupted(f"expected {digest}, received {done} bytes with {found}")
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


async def _next_chunk(call: Any) -> bytes:
    """The next piece; empty at the end of the file."""
    try:
        async with asyncio.timeout(STALL_S):
            while (message := await call.read()) is not grpc.aio.EOF:
                if message.chunk:
                    return bytes(message.chunk)
            # The end of the messages is not yet the end of the file: the status says which one it is.
            if await call.code() is not grpc.StatusCode.OK:
                await call
        return b""
    except grpc.aio.AioRpcError as error:
        raise from_rpc_error(error, RegistryError) from error
    except TimeoutError as error:
        raise DeadlineExceeded(f"the registry sent nothing for {STALL_S:.0f} s") from error


def _keep(chunk: bytes, file: Any, hasher: Any) -> None:
    hasher.update(chunk)
    file.write(chunk)


def _sync(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())
