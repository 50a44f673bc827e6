"""A PEFT folder as the messages of a PushAdapter call: what a trainer sends after it has saved its weights."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from adapter.manifest import CONFIG_FILE, WEIGHTS_FILE, digest_file
from loraplex.inference.v1 import inference_service_pb2 as pb

CHUNK_BYTES = 2**20  # the most that the contract allows


def push_requests(
    folder: Path, name: str, *, mode: pb.ReloadMode = pb.RELOAD_MODE_DRAIN
) -> Iterator[pb.PushAdapterRequest]:
    """The header and the chunks. Hashes the file first, and reads it again as it is sent. Raises OSError."""
    weights = folder / WEIGHTS_FILE
    header = pb.PushHeader(
        adapter=name,
        adapter_config=(folder / CONFIG_FILE).read_bytes(),
        digest=digest_file(weights),
        size_bytes=weights.stat().st_size,
        mode=mode,
    )
    yield pb.PushAdapterRequest(header=header)
    with weights.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            yield pb.PushAdapterRequest(chunk=chunk)
