"""From the messages of a PushAdapter call to a header and the bytes that follow it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from inference.errors import InvalidRequest, PushStalled
from inference.push import STALL_S, PushHeader, ReloadMode
from loraplex.inference.v1 import inference_service_pb2 as pb

MODES = {
    pb.RELOAD_MODE_UNSPECIFIED: ReloadMode.DRAIN,
    pb.RELOAD_MODE_DRAIN: ReloadMode.DRAIN,
    pb.RELOAD_MODE_IMMEDIATE: ReloadMode.IMMEDIATE,
}


async def read_header(messages: AsyncIterator[pb.PushAdapterRequest]) -> PushHeader:
    """The first message of a call. Raises InvalidRequest, and PushStalled when it does not come."""
    try:
        async with asyncio.timeout(STALL_S):
            message = await anext(messages, None)
    except TimeoutError:
        raise PushStalled(f"no header came for {STALL_S:g} s") from None
    if message is None or message.WhichOneof("part") != "header":
        raise InvalidRequest("header: expected it in the first message, found none", field="header")
    header = message.header
    if header.mode not in MODES:
        raise InvalidRequest(f"header.mode: expected a ReloadMode, found {header.mode}", field="header.mode")
    return PushHeader(header.adapter, header.adapter_config, header.digest, header.size_bytes, MODES[header.mode])


async def read_chunks(messages: AsyncIterator[pb.PushAdapterRequest]) -> AsyncIterator[bytes]:
    """The bytes of the messages after the first. Raises InvalidRequest for a message that is no chunk."""
    async for message in messages:
        if message.WhichOneof("part") != "chunk":
            raise InvalidRequest("chunk: expected it in every message after the first, found none", field="chunk")
        yield message.chunk
