"""SigningService: protobuf in, protobuf out."""

from __future__ import annotations

from typing import Any

from loraplex.registry.v1 import signing_service_pb2 as pb
from loraplex.registry.v1.signing_service_pb2_grpc import SigningServiceServicer
from registry import messages
from registry.admin_service import make_call
from registry.errors import InvalidRequest
from registry.requests import check_alias
from registry.resources import AliasPolicy
from registry.signatures import read_public_key, write_public_key
from registry.store.signing import Signing

# mypy-protobuf's own context type is private to each stub.
Context = Any
MAX_KEYS = 16


class SigningService(SigningServiceServicer):
    """Signatures of versions, and the policies of aliases."""

    def __init__(self, signing: Signing) -> None:
        self._signing = signing

    async def SignAdapterVersion(
        self, request: pb.SignAdapterVersionRequest, context: Context
    ) -> pb.SignAdapterVersionResponse:
        signature = messages.read_signature(request.signature)
        if signature is None:
            raise InvalidRequest("expected a signature, found none", field="signature")
        answer = await self._signing.sign(
            make_call("SignAdapterVersion", request), request.adapter, request.version, signature
        )
        return pb.SignAdapterVersionResponse(version=messages.write_version(answer.version), revision=answer.revision)

    async def SetAliasPolicy(self, request: pb.SetAliasPolicyRequest, context: Context) -> pb.SetAliasPolicyResponse:
        keys = request.policy.public_keys
        if len(keys) > MAX_KEYS:
            raise InvalidRequest(f"public_keys: expected at most {MAX_KEYS}, found {len(keys)}", field="public_keys")
        policy = AliasPolicy(
            adapter=request.policy.adapter,
            alias=check_alias(request.policy.alias),
            public_keys=tuple(write_public_key(read_public_key(key)) for key in keys),
        )
        answer = await self._signing.set_policy(make_call("SetAliasPolicy", request), policy)
        return pb.SetAliasPolicyResponse(policy=_write_policy(answer.policy), revision=answer.revision)

    async def GetAliasPolicy(self, request: pb.GetAliasPolicyRequest, context: Context) -> pb.GetAliasPolicyResponse:
        found = await self._signing.get_policy(request.adapter, check_alias(request.alias))
        return pb.GetAliasPolicyResponse(policy=_write_policy(found))


def _write_policy(policy: AliasPolicy) -> pb.AliasPolicy:
    return pb.AliasPolicy(adapter=policy.adapter, alias=policy.alias, public_keys=policy.public_keys)
