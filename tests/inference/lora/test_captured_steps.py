"""A captured decode, replayed on other batches and other adapters, is the same decode computed directly.

Through the CUDA ops on the simulated device, whose stand-in for a graph repeats what the host asked for and nothing
that the host decided; and on the CPU, where padding must change nothing either.
"""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pytest
import torch

import kernels
import kernels.cuda
from inference.engine.batch import HostBatch, lay_out
from inference.engine.graphs import DecodeGraphs, eager
from inference.engine.kv_cache import KVCache
from inference.engine.request import Request, SamplingParams
from inference.engine.sequence import Chunk, Sequence
from inference.lora.step import LoraPlan
from inference.models.llama import Llama
from kernels import cpu
from kernels.cuda import attention
from kernels.segments import Grouping
from tests.inference.lora.vectors import add_vectors
from tests.kernels.cuda.simulator.attention import documented
from tests.kernels.cuda.simulator.device import Device, installed
from tests.kernels.cuda.simulator.ptx import PtxError
from tests.kernels.cuda.simulator.recording import HostRead, RecordedCapture, opaque

BLOCK_SIZE = 4
ALL = ("q", "k", "v", "o", "gate", "up", "down")
RANKS = {"one": dict.fromkeys(ALL, 5), "two": dict.fromkeys(ALL, 16), "some": {"q": 3, "v": 16, "down": 1}}


class Decoding:
    """Sequences of a tiny model, each with its own uses, decoded one token at a time on their own cache."""

    def __init__(self, model, bank, uses) -> None:
        config = model.config
        self.model, self.bank, self.uses = model, bank, uses
        self.kv = KVCache(
            num_layers=config.num_layers,
            num_blocks=64,
            block_size=BLOCK_SIZE,
            num_kv_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            dtype=model.dtype,
        )
        self.kv._memory.fill_(torch.nan)
        free = iter((1 + torch.randperm(63)).tolist())  # block 0 is nobody's
        self.sequences = []
        for n in range(len(uses)):
            tokens = [(7 * n + 3 * place) % config.vocab_size for place in range(2 + n % 5)]
            request = Request(f"{n}", tuple(tokens), SamplingParams(9))
            self.sequences.append(Sequence(request, n, blocks=[next(free) for _ in range(3)]))

    def host(self, length=None):
        """The batch of the next step: every sequence's tokens that are not computed, which are then."""
        chunks = [Chunk(one, one.computed, one.remaining, samples=True) for one in self.sequences]
        for chunk in chunks:
            chunk.sequence.computed += chunk.length
        host = lay_out(chunks, block_size=BLOCK_SIZE)
        rows = [(chunk.length, pairs) for chunk, pairs in zip(chunks, self.uses, strict=True)]
        plan = self.bank.lora_batch(rows, logit_rows=None if host.is_decode else host.logit_rows)
        return dataclasses.replace(host, lora=plan)

    @torch.inference_mode()
    def prefill(self) -> None:
        self.take(self.model.forward(self.host().send("cpu"), self.kv))

    @torch.inference_mode()
    def decode(self, graphs: DecodeGraphs | None = None) -> torch.Tensor:
        host = self.host()
        assert host.is_decode
        logits = self.model.forward(host.send("cpu"), self.kv) if graphs is None else graphs.logits(host)
        self.take(logits)
        return logits.clone()

    def take(self, logits) -> None:
        for sequence, token in zip(self.sequences, logits.argmax(dim=-1).tolist(), strict=True):
            sequence.tokens.append(token)

    def graphs(self, capture) -> DecodeGraphs:
        vocab_size = self.model.config.vocab_size
        return DecodeGraphs(self.model, self.kv, capture, vocab_size=vocab_size, max_rows=16, max_blocks=32)

    def twin(self) -> Decoding:
        """The same sequences on a copy of the cache."""
        twin = copy.copy(self)
        twin.kv, twin.sequences = copy.deepcopy(self.kv), copy.deepcopy(self.sequences)
        return twin


@pytest.fixture
async def bank_and_slots(make_worker, tiny_model_dir, write_adapter, files_of):
    """A bank with adapters for a tiny model in bfloat16, and what the model is."""
    torch.manual_seed(0)
    model = Llama.load(tiny_model_dir("llama"), "bfloat16")
    worker = make_worker(model=model)
    leases = {}
    for seed, (name, ranks) in enumerate(RANKS.items()):
        folder = write_adapter(name, worker.modules, ranks, seed=seed)
        leases[name] = await worker.adapters.acquire(files_of(folder))
    yield model, worker.bank, {name: lease.slot for name, lease in leases.items()}
    for lease in leases.values():
        lease.release()


@pytest.fixture
def device(monkeypatch):
    """The ops of a CUDA device, simulated; blocks may be small, as its attention is a stand-in."""
    monkeypatch.setattr(attention, "BLOCK_STEP", 1)
    monkeypatch.setattr(attention, "varlen_attn", opaque(documented))
    monkeypatch.setattr(kernels, "_ops", lambda _: kernels.cuda)
    with installed(Device()) as device:
        yield device


def uses_of(slots, *names):
    """`one` alone, `one+two` composed, nothing for the base model."""
    return [[(slots[part], 1.0 - 0.25 * n) for n, part in enumerate(name.split("+")) if part] for name in names]


def both(model, bank, uses) -> tuple[Decoding, Decoding]:
    """The same sequences twice, their prompts computed; on the CPU, as nothing is captured there."""
    direct = Decoding(model, bank, uses)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "_ops", lambda _: cpu)
        direct.prefill()
    return direct, direct.twin()


def assert_same_step(direct: Decoding, captured: Decoding, graphs: DecodeGraphs, uses) -> None:
    direct.uses = captured.uses = uses
    expected = direct.decode()
    assert torch.equal(captured.decode(graphs), expected), "the logits differ"
    written = captured.kv._memory.view(torch.int16)
    assert torch.equal(written, direct.kv._memory.view(torch.int16)), "the caches differ"


def test_a_replayed_decode_is_the_decode_of_the_same_rows_alone(bank_and_slots, device):
    model, bank, slots = bank_and_slots
    batches = [("one", "", "some", "two", "one"), ("two", "two", "", "one", "some"), ("", "", "two", "", "")]
    direct, captured = both(model, bank, uses_of(slots, *batches[0]))
    capture = RecordedCapture(device)
    graphs = captured.graphs(capture)
    for names in batches:
        assert_same_step(direct, captured, graphs, uses_of(slots, *names))
    assert (capture.num_captures, capture.num_replays) == (1, 2)
    assert {launch.name for launch in device.launches} == {"shrink_rows", "expand_rows", "write_kv"}


def test_composed_rows_have_a_graph_of_their_own(bank_and_slots, device):
    model, bank, slots = bank_and_slots
    direct, captured = both(model, bank, uses_of(slots, "one", "", "two"))
    capture = RecordedCapture(device)
    graphs = captured.graphs(capture)
    for names in [("one+two", "", "some"), ("two", "some+one", "")]:
        assert_same_step(direct, captured, graphs, uses_of(slots, *names))
    assert (capture.num_captures, capture.num_replays) == (1, 1)
    assert_same_step(direct, captured, graphs, uses_of(slots, "two", "one", "one"))
    assert capture.num_captures == 2


def test_adapters_that_come_and_go_are_what_a_replay_reads(bank_and_slots, device, write_adapter, make_worker):
    """The tables and the arena are read anew: a slot's next owner has its weights elsewhere."""
    model, bank, slots = bank_and_slots
    direct, captured = both(model, bank, uses_of(slots, "one", "two"))
    capture = RecordedCapture(device)
    graphs = captured.graphs(capture)
    assert_same_step(direct, captured, graphs, uses_of(slots, "one", "two"))
    rng = torch.Generator().manual_seed(5)
    bank._is_checked = False  # the test changes what no load would
    before = bank._a_start.clone()
    bank._arena[: bank._arena.numel() // 2] = torch.randn(bank._arena.numel() // 2, generator=rng).to(model.dtype)
    bank._a_start[before > 0] += 64
    bank._b_start[bank._b_start > 0] += 64
    bank._scales *= 0.5
    assert_same_step(direct, captured, graphs, uses_of(slots, "two", "one"))
    assert (capture.num_captures, capture.num_replays) == (1, 1)


def test_vectors_norms_and_the_ends_of_the_model_are_captured_too(bank_and_slots, device):
    """Gains and shifts as of DoRA, norms of an adapter's own, rows of the embedding and of the head."""
    model, bank, slots = bank_and_slots
    add_vectors(bank, slots["one"], begin=1 << 18)
    direct, captured = both(model, bank, uses_of(slots, "one", "", "two"))
    capture = RecordedCapture(device)
    graphs = captured.graphs(capture)
    for names in [("one", "", "two"), ("", "two", "one"), ("two", "one", "one")]:
        assert_same_step(direct, captured, graphs, uses_of(slots, *names))
    assert (capture.num_captures, capture.num_replays) == (1, 2)
    assert {"rescale", "look_up"} <= {launch.name for launch in device.launches}


def test_many_rows_of_one_adapter_share_a_graph_of_tiles(bank_and_slots, device):
    model, bank, slots = bank_and_slots
    direct, captured = both(model, bank, uses_of(slots, *["one"] * 16))
    graphs = captured.graphs(RecordedCapture(device))
    for names in [["one"] * 16, ["one"] * 9 + [""] * 7]:
        assert_same_step(direct, captured, graphs, uses_of(slots, *names))
    assert "expand_tiles" in {launch.name for launch in device.launches}
    assert len(graphs) == 1


@pytest.mark.parametrize("names", [("one", "", "two+some"), ("", "", "")], ids=["adapters", "base"])
def test_padding_changes_nothing_on_the_cpu(names, bank_and_slots):
    model, bank, slots = bank_and_slots
    direct, captured = both(model, bank, uses_of(slots, *names))
    graphs = captured.graphs(eager)
    for _ in range(2):
        assert_same_step(direct, captured, graphs, uses_of(slots, *names))
    assert len(graphs) == 1


def forget_the_plan(patch) -> None:
    """A graph is replayed for ranks that it does not do."""
    patch.setattr(LoraPlan, "key", None)


def send_once(patch) -> None:
    """A replay computes the batch that was captured."""
    send, sent = HostBatch.send, set()

    def once(host, device, *, into=None):
        if into is None or into.data_ptr() not in sent:
            sent.add(None if into is None else into.data_ptr())
            return send(host, device, into=into)
        return None

    patch.setattr(HostBatch, "send", once)


def write_padding(patch) -> None:
    """Rows of padding have a place in the cache."""
    padded = HostBatch.padded

    def wrong(host, **sizes):
        found = padded(host, **sizes)
        return dataclasses.replace(found, write_index=np.where(found.write_index < 0, 0, found.write_index))

    patch.setattr(HostBatch, "padded", wrong)


def give_padding_a_slot(patch) -> None:
    """Entries of padding belong to the first segment and the first row."""
    padded = Grouping.padded

    def wrong(grouping, **sizes):
        found = padded(grouping, **sizes)
        starts = np.where(found.starts == grouping.num_entries, found.num_entries, found.starts)
        segment_of, rows = np.maximum(found.segment_of, 0), np.maximum(found.rows, 0)
        return dataclasses.replace(found, starts=starts, segment_of=segment_of, rows=rows)

    patch.setattr(Grouping, "padded", wrong)


@pytest.mark.parametrize("fault", [forget_the_plan, send_once, write_padding, give_padding_a_slot])
def test_a_fault_in_captured_steps_is_seen(fault, bank_and_slots, device, monkeypatch):
    """That the tests above can fail."""
    model, bank, slots = bank_and_slots
    direct, captured = both(model, bank, uses_of(slots, "some", "", "some"))
    captured.kv._memory[:, :, 0] = direct.kv._memory[:, :, 0] = 0.0  # nobody's block
    fault(monkeypatch)
    graphs = captured.graphs(RecordedCapture(device))
    with pytest.raises((AssertionError, PtxError)):  # noqa: PT012  # one of the steps shows it
        assert_same_step(direct, captured, graphs, uses_of(slots, "some", "", "some"))
        assert_same_step(direct, captured, graphs, uses_of(slots, "one", "one", ""))
        assert_same_step(direct, captured, graphs, uses_of(slots, "", "one", "one"))


def test_a_step_that_reads_the_device_cannot_be_captured(bank_and_slots, device, monkeypatch):
    model, bank, slots = bank_and_slots
    forward = model.forward
    monkeypatch.setattr(model, "forward", lambda batch, kv: forward(batch, kv) * int(batch.context_lens[0]))
    _, captured = both(model, bank, uses_of(slots, "one"))
    with pytest.raises(HostRead, match="reads the device's memory"):
        captured.decode(captured.graphs(RecordedCapture(device)))
