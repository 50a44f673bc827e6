from __future__ import annotations

import contextlib

import numpy as np
import pytest
import torch

from inference.engine.batch import HostBatch, lay_out
from inference.engine.graphs import MAX_GRAPHS, CudaCapture, DecodeGraphs, eager, pad, rounded_rows
from inference.engine.kv_cache import KVCache
from inference.engine.request import Request, SamplingParams
from inference.engine.runner import Runner
from inference.engine.sequence import Chunk, Sampled, Sequence
from inference.lora.bank import Bank
from inference.models.sites import SitePart, SiteShape


class LastToken:
    """A model whose logits are ones at the last token plus one."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def forward(self, batch, kv) -> torch.Tensor:
        self.sizes.append(batch.token_ids.shape[0])
        return torch.nn.functional.one_hot(batch.token_ids[batch.logit_rows] + 1, 20).float()


@pytest.fixture
def kv_cache() -> KVCache:
    return KVCache(num_layers=1, num_blocks=4, block_size=8, num_kv_heads=1, head_dim=8, dtype=torch.float32)


@pytest.fixture
def bank() -> Bank:
    shape = SiteShape("o", 8, (SitePart("model.layers.0.self_attn.o_proj", 8),))
    return Bank([shape], capacity_bytes=1024, dtype=torch.float32, max_slots=4)


def decode(tokens, blocks=(0,)) -> Chunk:
    sequence = Sequence(Request("r", (1, *tokens), SamplingParams(1)), 0, computed=len(tokens), blocks=list(blocks))
    return Chunk(sequence, len(tokens), 1, samples=True)


def host_of(count: int, num_blocks: int = 1) -> HostBatch:
    return lay_out([decode([2], range(num_blocks)) for _ in range(count)], block_size=8)


@pytest.mark.parametrize(("count", "rows"), [(1, 1), (3, 4), (8, 8), (33, 64), (64, 64), (65, 128), (129, 192)])
def test_rows_are_rounded_to_few_sizes(count, rows):
    assert rounded_rows(count) == rows


def test_what_pads_a_decode_has_no_row_no_context_and_no_place_in_the_cache():
    chunks = [decode([5, 6], [3]), decode([7], [1]), decode([8, 9, 4, 4, 4, 4, 4, 4], [2, 0])]
    host = lay_out(chunks, block_size=8)
    padded = pad(host, max_blocks=40)
    assert padded.token_ids.tolist() == [*host.token_ids, 0]
    assert padded.write_index.tolist() == [3 * 8 + 2, 1 * 8 + 1, 0 * 8 + 0, -1]
    assert padded.query_starts.tolist() == [0, 1, 2, 3, 3]
    assert padded.context_lens.tolist() == [3, 2, 9, 0]
    assert padded.block_tables.shape == (4, 16)
    assert np.array_equal(padded.block_tables[:3, :2], host.block_tables)
    assert not padded.block_tables[3].any()
    assert not padded.block_tables[:, 2:].any()
    assert padded.logit_rows.tolist() == [0, 1, 2, 3]
    assert padded.num_bytes == sum(-(-array.nbytes // 16) * 16 for array in padded.arrays)


def test_block_tables_never_grow_past_the_longest_context():
    assert [pad(host_of(1, n), max_blocks=48).block_tables.shape[1] for n in (1, 17, 33)] == [16, 32, 48]


def test_batches_of_a_bucket_share_a_graph_and_others_do_not(kv_cache):
    model = LastToken()
    graphs = DecodeGraphs(model, kv_cache, eager, vocab_size=20, max_rows=100, max_blocks=4)
    for count in (3, 4, 5, 3):
        assert graphs.logits(host_of(count)).shape == (count, 20)
    assert model.sizes == [4, 4, 8, 4]
    assert len(graphs) == 2
    assert graphs.logits(host_of(100)).shape == (100, 20)


def test_the_graph_that_rested_longest_makes_room(kv_cache, monkeypatch):
    monkeypatch.setattr("inference.engine.graphs.MAX_GRAPHS", 2)
    assert MAX_GRAPHS > 2
    captured = []

    def capture(compute):
        captured.append(compute)
        return eager(compute)

    graphs = DecodeGraphs(LastToken(), kv_cache, capture, vocab_size=20, max_rows=8, max_blocks=4)
    for count in (1, 2, 1, 4, 1, 2):
        graphs.logits(host_of(count))
    assert len(graphs) == 2
    assert len(captured) == 4, "the graph of 2 rows was captured again, that of 1 row was not"


def test_a_capture_follows_a_first_run_on_a_stream_of_its_own_and_may_fail(monkeypatch, caplog):
    """Of torch's calls only their order can be seen here: each notes itself."""
    told: list[str] = []

    class Stream:
        device = torch.device("cuda")

        def __init__(self, device=None):
            pass

        def wait_stream(self, other):
            told.append("wait for the first run")

    class Graph:
        def capture_begin(self, pool, capture_error_mode):
            told.append(f"begin in {pool}, {capture_error_mode}")

        def capture_end(self):
            told.append("end")

        def replay(self):
            told.append("replay")

    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: "the pool")
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: Stream())
    monkeypatch.setattr(torch.cuda, "stream", lambda _: contextlib.nullcontext())
    capture = CudaCapture(torch.device("cuda"))
    replay = capture(lambda: told.append("compute"))
    whole = ["compute", "wait for the first run", "begin in the pool, thread_local", "compute", "end"]
    assert told == whole
    replay()
    assert told.pop() == "replay"

    def fail_once_captured() -> None:
        told.append("compute")
        if told.count("compute") == 4:
            raise RuntimeError("not capturable")

    replay = capture(fail_once_captured)
    assert told == whole * 2, "a capture that fails ends too"
    assert "a step cannot be captured" in caplog.text
    replay()
    assert told == [*whole, *whole, "compute"], "and the host computes what it would have"


def test_only_steps_of_nothing_but_decodes_are_captured(kv_cache, bank):
    model = LastToken()
    graphs = DecodeGraphs(model, kv_cache, eager, vocab_size=20, max_rows=8, max_blocks=4)
    runner = Runner(model, kv_cache, bank, graphs)
    assert runner.run([decode([3]), decode([4]), decode([5])]) == [Sampled(4), Sampled(5), Sampled(6)]
    prompt = Sequence(Request("p", (3, 4, 9), SamplingParams(1)), 0, blocks=[1])
    assert runner.run([decode([3]), Chunk(prompt, 0, 3, samples=True)]) == [Sampled(4), Sampled(10)]
    assert runner.run([decode([3]), Chunk(prompt, 0, 1, samples=False)]) == [Sampled(4)]
    assert model.sizes == [4, 4, 2]
    assert len(graphs) == 1


def test_a_decode_whose_adapters_leave_something_to_the_host_is_not_captured(kv_cache, bank, monkeypatch):
    class PlanOfTheHost:
        is_capturable = False
        arrays = ()

        def restore(self, tensors):
            return None

    monkeypatch.setattr(bank, "lora_batch", lambda *_, **__: PlanOfTheHost())
    graphs = DecodeGraphs(LastToken(), kv_cache, eager, vocab_size=20, max_rows=8, max_blocks=4)
    assert Runner(LastToken(), kv_cache, bank, graphs).run([decode([3])]) == [Sampled(4)]
    assert len(graphs) == 0
