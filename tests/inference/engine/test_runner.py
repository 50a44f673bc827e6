from __future__ import annotations

from typing import Any

import pytest
import torch

from inference.engine.engine import RequestsFailed
from inference.engine.kv_cache import KVCache, block_bytes
from inference.engine.request import Request, SamplingParams, SlotUse
from inference.engine.runner import Runner
from inference.engine.sequence import Chunk, Sampled, Sequence
from inference.errors import EngineFailed
from inference.lora.bank import Bank
from inference.models.sites import SitePart, SiteShape


class LastToken:
    """A model whose likeliest next token is the last one plus one; token 13 breaks it."""

    def __init__(self) -> None:
        self.batches: list[object] = []

    def forward(self, batch, kv) -> torch.Tensor:
        self.batches.append(batch)
        assert torch.is_inference_mode_enabled()
        last = batch.token_ids[batch.logit_rows]
        logits = torch.nn.functional.one_hot(last + 1, 20).float()
        return logits.masked_fill((last == 13)[:, None], torch.nan)


@pytest.fixture
def kv_cache() -> KVCache:
    return KVCache(num_layers=3, num_blocks=4, block_size=8, num_kv_heads=2, head_dim=5, dtype=torch.bfloat16)


@pytest.fixture
def bank() -> Bank:
    shape = SiteShape("o", 8, (SitePart("model.layers.0.self_attn.o_proj", 8),))
    return Bank([shape], capacity_bytes=1024, dtype=torch.float32, max_slots=4)


def make_chunk(tokens: list[int], *, id: str = "r", uses: tuple[SlotUse, ...] = (), length: int | None = None) -> Chunk:
    sequence = Sequence(Request(id, tuple(tokens), SamplingParams(1), uses=uses), 0, blocks=[0])
    length = length or len(tokens)
    return Chunk(sequence, 0, length, samples=length == len(tokens))


def test_only_chunks_that_reach_the_last_token_are_sampled(kv_cache: KVCache, bank: Bank) -> None:
    runner = Runner(LastToken(), kv_cache, bank)
    chunks = [make_chunk([3, 4]), make_chunk([5, 6, 7], length=2), make_chunk([9])]
    assert runner.run(chunks) == [Sampled(5), Sampled(10)]


def test_logits_that_are_not_numbers_are_an_error_and_do_not_touch_their_neighbours(
    kv_cache: KVCache, bank: Bank
) -> None:
    runner = Runner(LastToken(), kv_cache, bank)
    first, failed, third = runner.run([make_chunk([3]), make_chunk([13]), make_chunk([4])])
    assert [first, third] == [Sampled(4), Sampled(5)]
    assert isinstance(failed, EngineFailed)


def test_penalties_see_the_prompt_and_the_answer_and_stop_tokens_wait(kv_cache: KVCache, bank: Bank) -> None:
    def choose(answered: list[int], **settings: Any) -> int:
        params = SamplingParams(9, **settings)
        sequence = Sequence(Request("r", (5, 3), params, stop_token_ids=frozenset({4})), 0, blocks=[0])
        sequence.tokens += answered
        [sampled] = Runner(LastToken(), kv_cache, bank).run([Chunk(sequence, 0, len(sequence.tokens), samples=True)])
        assert isinstance(sampled, Sampled)
        return sampled.token_id

    assert choose([]) == 4
    assert choose([], min_tokens=1) == 0, "the lowest of equals, because 4 is a stop token"
    assert choose([3], min_tokens=1) == 4
    assert choose([4, 3], presence_penalty=2.0) == 0
    assert choose([4, 3], frequency_penalty=-2.0) == 4
    assert choose([4, 4, 3], frequency_penalty=0.6, logit_bias=((7, 0.1),)) == 7
    assert choose([4], repetition_penalty=1.5, logit_bias=((5, 0.5),)) == 5


def test_a_slot_with_another_owner_is_found_before_anything_is_computed(kv_cache: KVCache, bank: Bank) -> None:
    model = LastToken()
    bank.publish(1, "sha256:right")
    chunks = [
        make_chunk([1], id="right", uses=(SlotUse(1, "sha256:right"),)),
        make_chunk([1], id="wrong", uses=(SlotUse(1, "sha256:right"), SlotUse(1, "sha256:other"))),
        make_chunk([1], id="gone", uses=(SlotUse(2, "sha256:right"),)),
    ]
    with pytest.raises(RequestsFailed, match="slot 1: expected the weights of sha256:other, found those of") as failed:
        Runner(model, kv_cache, bank).run(chunks)
    assert failed.value.request_ids == ["wrong", "gone"]
    assert model.batches == []


def test_the_cache_has_the_size_that_its_blocks_promise(kv_cache: KVCache) -> None:
    size = block_bytes(num_layers=3, block_size=8, num_kv_heads=2, head_dim=5, dtype=torch.bfloat16)
    assert kv_cache.num_bytes == 4 * size
    assert kv_cache.k(2).shape == kv_cache.v(0).shape == (4, 8, 2, 5)
    assert kv_cache.k(1).data_ptr() != kv_cache.v(1).data_ptr()
    assert kv_cache.k(1).is_contiguous()
