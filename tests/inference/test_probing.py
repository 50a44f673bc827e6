"""Probes made from an adapter's own answers pass on that adapter, in another precision too, and on no other weights."""

from __future__ import annotations

from dataclasses import replace

import grpc
import pytest

from adapter.manifest import PROBE_FILE, WEIGHTS_FILE
from adapter.probe import read_probes
from inference.errors import InvalidRequest
from inference.probing import NEAR_TIE, probing_settings, write_probes

PROMPT = [5, 6, 7]


@pytest.fixture
def settings(tiny_served_dir):
    return replace(probing_settings(tiny_served_dir, "float32"), adapter_memory=2**22, kv_memory=2**22, threads=1)


async def write_clear_probes(settings, folder, count=3):
    """Of the first prompts whose first token is clear."""
    found = []
    for letter in "ABCDEFGHIJKLMNOP":
        if len(found) < count:
            try:
                await write_probes(settings, folder, [letter * 3], num_tokens=6)
                found.append(letter * 3)
            except InvalidRequest:
                assert not (folder / PROBE_FILE).exists()
    return await write_probes(settings, folder, found, num_tokens=6)


async def test_an_adapter_passes_its_own_probes_in_any_precision_and_other_weights_do_not(
    settings, tiny_adapter, open_worker
):
    folder, other = tiny_adapter("one", seed=1), tiny_adapter("two", seed=2)
    answers = await write_clear_probes(settings, folder)
    probes = read_probes(folder / PROBE_FILE)
    assert len(probes) == len(answers) == 3
    assert all(len(probe.expected_token_ids) == 6 and probe.logprobs for probe in probes)
    for dtype in ("float32", "bfloat16"):
        async with open_worker(adapters=(f"a={folder}",), dtype=dtype) as worker:
            assert await worker.tokens(PROMPT, "a")
    (folder / WEIGHTS_FILE).write_bytes((other / WEIGHTS_FILE).read_bytes())
    async with open_worker(adapters=(f"a={folder}",)) as worker:
        with pytest.raises(grpc.aio.AioRpcError, match="failed its self-test"):
            await worker.tokens(PROMPT, "a")


async def test_what_follows_a_near_tie_is_not_compared(settings, tiny_adapter, monkeypatch):
    folder = tiny_adapter("one", seed=1)
    await write_clear_probes(settings, folder)
    before = [probe.leading for probe in read_probes(folder / PROBE_FILE)]
    prompts = [probe.prompt for probe in read_probes(folder / PROBE_FILE)]
    monkeypatch.setattr("inference.probing.NEAR_TIE", 0.0)
    await write_probes(settings, folder, prompts, num_tokens=6)
    assert [probe.leading for probe in read_probes(folder / PROBE_FILE)] == [6, 6, 6]
    assert min(before) < 6, "no answer has a near tie, so this test tests nothing"
    monkeypatch.setattr("inference.probing.NEAR_TIE", 100 * NEAR_TIE)
    with pytest.raises(InvalidRequest, match="found two that are nearly as likely"):
        await write_probes(settings, folder, prompts, num_tokens=6)
