"""A folder becomes a push that a worker takes as it is, from the client's messages and from the command line."""

from __future__ import annotations

import asyncio

from click.testing import CliRunner

from adapter.manifest import WEIGHTS_FILE, manifest_of_adapter
from inference import push_client
from inference.cli import cli
from inference.push_client import push_requests
from loraplex.inference.v1 import inference_service_pb2 as pb


async def test_a_folder_is_pushed_whole_in_chunks(open_worker, tiny_adapter, monkeypatch):
    monkeypatch.setattr(push_client, "CHUNK_BYTES", 999)
    folder = tiny_adapter("rl")
    header, *chunks = push_requests(folder, "rl", mode=pb.RELOAD_MODE_IMMEDIATE)
    assert header.header.mode == pb.RELOAD_MODE_IMMEDIATE
    assert b"".join(part.chunk for part in chunks) == (folder / WEIGHTS_FILE).read_bytes()
    async with open_worker() as worker:
        answer = await worker.stub.PushAdapter(push_requests(folder, "rl"))
        assert answer.adapter.digest == manifest_of_adapter(folder).digest


async def test_the_command_pushes_and_says_what_serves_now_or_why_not(open_worker, tiny_adapter):
    folder = tiny_adapter("rl")
    async with open_worker() as worker:

        def push(*arguments):
            return CliRunner().invoke(cli, ["push", *arguments, "--server", worker.address])

        done = await asyncio.to_thread(push, "rl", str(folder), "--immediate")
        assert done.output == f"rl now serves {manifest_of_adapter(folder).digest}\n"
        assert await worker.tokens([5, 6, 7], "rl")
        (folder / WEIGHTS_FILE).unlink()
        failed = await asyncio.to_thread(push, "rl", str(folder))
        assert failed.exit_code == 2
        assert "No such file" in failed.output
