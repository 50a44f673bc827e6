from __future__ import annotations

import random

import torch

from inference.engine.batch import lay_out
from inference.engine.request import Request, SamplingParams
from inference.engine.sequence import Chunk, Sequence


def make_chunk(tokens: list[int], start: int, length: int, blocks: list[int]) -> Chunk:
    sequence = Sequence(Request("r", tuple(tokens), SamplingParams(1)), 0, computed=start, blocks=blocks)
    return Chunk(sequence, start, length, samples=start + length == len(tokens))


def test_a_prefill_a_chunk_and_a_decode_lie_one_after_the_other() -> None:
    chunks = [
        make_chunk([5, 6, 7], 0, 3, [4]),
        make_chunk([1, 2, 3, 4, 5, 6, 7], 3, 3, [9, 2]),
        make_chunk([8, 9, 8, 9, 8], 4, 1, [0, 7]),
    ]
    batch = lay_out(chunks, block_size=4).send("cpu")
    assert batch.token_ids.tolist() == [5, 6, 7, 4, 5, 6, 8]
    assert batch.positions.tolist() == [0, 1, 2, 3, 4, 5, 4]
    assert batch.write_index.tolist() == [16, 17, 18, 39, 8, 9, 28]
    assert batch.query_starts.tolist() == [0, 3, 6, 7]
    assert batch.context_lens.tolist() == [3, 6, 5]
    assert batch.block_tables.tolist() == [[4, 0], [9, 2], [0, 7]]
    assert batch.logit_rows.tolist() == [2, 6]
    for tensor in (batch.token_ids, batch.positions, batch.write_index, batch.logit_rows):
        assert tensor.dtype is torch.int64
    for tensor in (batch.query_starts, batch.context_lens, batch.block_tables):
        assert tensor.dtype is torch.int32


def test_random_batches_are_what_a_loop_over_rows_would_make() -> None:
    rng = random.Random(0)
    for _ in range(50):
        chunks, rows = [], []
        for _ in range(rng.randint(1, 9)):
            tokens = [rng.randrange(100) for _ in range(rng.randint(1, 40))]
            start = rng.randrange(len(tokens))
            length = rng.randint(1, len(tokens) - start)
            blocks = rng.sample(range(99), -(-len(tokens) // 8))
            chunks.append(make_chunk(tokens, start, length, blocks))
            rows += [(tokens[p], p, blocks[p // 8] * 8 + p % 8) for p in range(start, start + length)]
        batch = lay_out(chunks, block_size=8).send("cpu")
        columns = (batch.token_ids.tolist(), batch.positions.tolist(), batch.write_index.tolist())
        assert list(zip(*columns, strict=True)) == rows
        assert batch.logit_rows.shape[0] == sum(chunk.samples for chunk in chunks)
