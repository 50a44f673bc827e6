"""Channels to a server that comes and goes."""

from __future__ import annotations

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from rpc.channel import connect
from rpc.security import Security
from rpc.server import Server


async def probe(channel: grpc.aio.Channel) -> int:
    answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=20)
    return int(answer.status)


async def test_a_new_channel_does_not_wait_out_the_back_off_of_another_to_the_same_server() -> None:
    first = Server([], listen="127.0.0.1:0", security=Security())
    await first.start()
    target = f"127.0.0.1:{first.port}"
    await first.drain(0)
    async with connect(target) as before:
        with pytest.raises(grpc.aio.AioRpcError):
            await probe(before)
        second = Server([], listen=target, security=Security())
        await second.start()
        try:
            async with connect(target) as after:
                assert await probe(after) == health_pb2.HealthCheckResponse.SERVING
        finally:
            await second.drain(0)
