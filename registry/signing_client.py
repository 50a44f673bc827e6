"""The part of the client that is about signatures: `client.signing`."""

from __future__ import annotations

from collections.abc import Sequence

import grpc

from loraplex.registry.v1 import signing_service_pb2 as pb
from loraplex.registry.v1.signing_service_pb2_grpc import SigningServiceStub
from registry import messages
from registry.calls import Calls, new_request_id
from registry.resources import AdapterVersion, AliasPolicy, Signature


class SigningClient:
    """SigningService over the client's channel."""

    def __init__(self, channel: grpc.aio.Channel, calls: Calls) -> None:
        self._stub = SigningServiceStub(channel)
        self._calls = calls

    async def sign(self, adapter: str, number: int, signature: Signature) -> AdapterVersion:
        """Keeps a signature that `registry.signatures.sign` made with a version."""
        answer = await self._calls.call(
            self._stub.SignAdapterVersion,
            pb.SignAdapterVersionRequest(
                adapter=adapter,
                version=number,
                signature=messages.write_signature(signature),
                request_id=new_request_id(),
            ),
        )
        return messages.read_version(answer.version)

    async def set_policy(self, adapter: str, public_keys: Sequence[str], *, alias: str = "") -> AliasPolicy:
        """Says by which keys, in PEM, a version must be signed to be promoted; none: it need not be."""
        policy = pb.AliasPolicy(adapter=adapter, alias=alias, public_keys=public_keys)
        request = pb.SetAliasPolicyRequest(policy=policy, request_id=new_request_id())
        answer = await self._calls.call(self._stub.SetAliasPolicy, request)
        return _read_policy(answer.policy)

    async def get_policy(self, adapter: str, *, alias: str = "") -> AliasPolicy:
        """What an alias wants of a version."""
        request = pb.GetAliasPolicyRequest(adapter=adapter, alias=alias)
        return _read_policy((await self._calls.call(self._stub.GetAliasPolicy, request)).policy)


def _read_policy(message: pb.AliasPolicy) -> AliasPolicy:
    return AliasPolicy(message.adapter, message.alias, tuple(message.public_keys))
