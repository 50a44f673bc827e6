"""A health check for containers: `python -m rpc.probe HOST:PORT` ends with 0 when the server says SERVING."""

from __future__ import annotations

import sys

import grpc
from grpc_health.v1 import health_pb2

TIMEOUT_S = 2.0
CHECK = "/grpc.health.v1.Health/Check"


def is_serving(target: str) -> bool:
    """Asks the server at `host:port` in plain text; False also when it cannot be reached."""
    with grpc.insecure_channel(target) as channel:
        try:
            check = channel.unary_unary(
                CHECK,
                request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
                response_deserializer=health_pb2.HealthCheckResponse.FromString,
            )
            answer = check(health_pb2.HealthCheckRequest(), timeout=TIMEOUT_S)
        except grpc.RpcError:
            return False
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


if __name__ == "__main__":
    sys.exit(0 if is_serving(sys.argv[1]) else 1)
