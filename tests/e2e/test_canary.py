"""A split alias through real processes: the worker and the registry give every request the same side."""

from __future__ import annotations

import asyncio
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.asyncio(loop_scope="module")

IDS = [f"request-{number}" for number in range(24)]


async def test_a_worker_serves_a_split_as_the_registry_resolves_it(system: Any, e2e: Any, adapters_dir: Path) -> None:
    for name in ("pirate", "json"):
        await system.cli("register", str(adapters_dir / name), "--name", "tone", "--base", e2e.BASE)
    await system.cli("promote", "tone", "1", "--wait")
    async with system.stub() as stub, e2e.open_client(system.registry.address) as client:

        async def sides() -> list[int]:
            answers = await asyncio.gather(
                *(e2e.generate(stub, e2e.ask("Hi", "tone", max_tokens=1, request_id=one)) for one in IDS)
            )
            return [answer.version for answer in answers]

        resolved = []
        for share in ("30%", "60%"):
            await system.cli("promote", "tone", "2", "--canary", share, "--wait")
            found = [(await client.resolve("tone", request_key=one)).version.number for one in IDS]
            assert await sides() == found
            resolved.append({one for one, number in zip(IDS, found, strict=True) if number == 2})
        small, grown = resolved
        assert set() < small < grown < set(IDS)
        (worker,) = await client.list_workers()
        served = {one.version for one in worker.adapters if one.adapter == "tone" and "production" in one.aliases}
        assert served == {1, 2}
        await system.cli("promote", "tone", "2", "--wait")
        assert set(await sides()) == {2}


async def test_a_split_with_a_broken_side_keeps_what_was_served(
    system: Any, e2e: Any, adapters_dir: Path, tmp_path: Path
) -> None:
    shutil.copytree(adapters_dir / "json", tmp_path / "other")
    config = tmp_path / "other" / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"lora_alpha": 1}))  # a digest that nobody has yet
    for folder in (adapters_dir / "pirate", tmp_path / "other"):
        await system.cli("register", str(folder), "--name", "halved", "--base", e2e.BASE)
    await system.cli("promote", "halved", "1", "--wait")
    digest = hashlib.sha256(config.read_bytes()).hexdigest()
    blob = system.folder / "registry" / "blobs" / "sha256" / digest[:2] / digest[2:]
    blob.chmod(0o644)
    blob.write_bytes(config.read_bytes()[:-1])
    said = await system.cli("promote", "halved", "2", "--canary", "50%", "--wait", code=7)
    assert "could not load it" in said
    async with system.stub() as stub:
        for one in IDS[:6]:
            assert (await e2e.generate(stub, e2e.ask("Hi", "halved", max_tokens=1, request_id=one))).version == 1
