"""A trainer that pushes its weights straight into a worker after each step, with nothing but the generated stubs.

inference serve --model .cache/smollm2-135m-instruct
python -m examples.push examples/adapters/pirate rl            # running answers finish on the old weights
python -m examples.push examples/adapters/pirate rl immediate  # or go on with the new ones, and say from which token
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc

from loraplex.inference.v1 import inference_service_pb2 as pb
from loraplex.inference.v1 import inference_service_pb2_grpc as pb_grpc

WORKER = "127.0.0.1:7200"
CHUNK_BYTES = 2**20


def main() -> None:
    folder, name, *rest = sys.argv[1:]
    mode = pb.RELOAD_MODE_IMMEDIATE if "immediate" in rest else pb.RELOAD_MODE_DRAIN
    # What `model.save_pretrained(folder)` of PEFT writes; a trainer may as well keep both in memory.
    weights = (Path(folder) / "adapter_model.safetensors").read_bytes()
    config = (Path(folder) / "adapter_config.json").read_bytes()
    with grpc.insecure_channel(WORKER) as channel:
        stub = pb_grpc.InferenceServiceStub(channel)
        try:
            answer = stub.PushAdapter(messages(name, config, weights, mode), timeout=60)
        except grpc.RpcError as error:
            raise SystemExit(f"{error.code().name}: {error.details()}") from None
        print(f"{name} now serves {answer.adapter.digest}")


def messages(name: str, config: bytes, weights: bytes, mode: pb.ReloadMode) -> Iterator[pb.PushAdapterRequest]:
    """The header, then the weights in chunks."""
    digest = f"sha256:{hashlib.sha256(weights).hexdigest()}"
    yield pb.PushAdapterRequest(
        header=pb.PushHeader(adapter=name, adapter_config=config, digest=digest, size_bytes=len(weights), mode=mode)
    )
    for begin in range(0, len(weights), CHUNK_BYTES):
        yield pb.PushAdapterRequest(chunk=weights[begin : begin + CHUNK_BYTES])


if __name__ == "__main__":
    main()
