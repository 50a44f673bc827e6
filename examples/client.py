"""A service of yours that asks a worker, with nothing but the generated stubs.

python -m examples.client "Tell me about the sea." pirate     streams an answer of the adapter
python -m examples.client --json "Who sails the sea?" pirate  has it answer in the form of SCHEMA
"""

from __future__ import annotations

import json
import sys

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from loraplex.inference.v1 import inference_service_pb2 as pb
from loraplex.inference.v1 import inference_service_pb2_grpc as pb_grpc

WORKER = "127.0.0.1:7200"
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 40}, "age": {"type": "integer", "minimum": 0}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


def main() -> None:
    arguments = sys.argv[1:]
    is_guided = "--json" in arguments[:1]
    prompt, *adapters = arguments[is_guided:] or ["Tell me about the sea."]
    request = pb.GenerateRequest(
        chat=pb.Chat(messages=[pb.ChatMessage(role="user", content=prompt)]),
        adapters=[pb.AdapterUse(reference=reference) for reference in adapters],
        stop=pb.StopConditions(max_tokens=64),
        guide=pb.Guide(json_schema=json.dumps(SCHEMA)) if is_guided else None,
    )
    with grpc.insecure_channel(WORKER) as channel:
        stub = pb_grpc.InferenceServiceStub(channel)
        try:
            for message in stub.Generate(request, timeout=60):
                if message.HasField("started"):
                    for served in message.started.adapters:
                        print(f"[{served.adapter}:{served.version} {served.digest}]")
                print(message.chunk.text, end="", flush=True)
            print()
        except grpc.RpcError as error:
            raise SystemExit(f"{error.code().name} ({reason(error)}): {error.details()}") from None


def reason(error: grpc.RpcError) -> str:
    """The stable word for what went wrong, such as ADAPTER_NOT_FOUND: what a program should branch on."""
    status = rpc_status.from_call(error)  # type: ignore[arg-type]  # what a stub raises is its call as well
    for detail in status.details if status else ():
        info = error_details_pb2.ErrorInfo()
        if detail.Unpack(info):
            return str(info.reason)
    return "no reason given"


if __name__ == "__main__":
    main()
