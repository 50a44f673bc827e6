"""Tiny random models of every architecture, and what it takes to run one: a scrambled paged cache and its batches.

Also a whole worker over one of them, behind its real gRPC door, and random adapters for it.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import grpc
import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from inference.app import Core, open_core, open_service
from inference.engine.batch import Batch
from inference.models.linear import LoraBatch
from inference.models.llama import Llama
from inference.service import InferenceService
from inference.settings import Settings
from loraplex.inference.v1 import inference_service_pb2 as pb
from loraplex.inference.v1 import inference_service_pb2_grpc as pb_grpc
from rpc.security import Security
from rpc.server import Server, Service
from tests.tiny import BASE, write_adapter, write_tokenizer

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN_ROPE = {"rope_type": "yarn", "rope_theta": 500.0, "factor": 4.0, "original_max_position_embeddings": 16}
TINY_MODELS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "llama": ("llama", {}),
    "llama with a tied head": ("llama", {"tie_word_embeddings": True}),
    "llama without grouped heads": ("llama", {"num_key_value_heads": 4}),
    "llama with one key head": ("llama", {"num_key_value_heads": 1}),
    "llama with biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama with wide heads": ("llama", {"head_dim": 16}),
    "llama with a wide middle": ("llama", {"head_dim": 16, "intermediate_size": 1536}),
    "llama with llama3 rope": ("llama", {"rope_parameters": LLAMA3_ROPE}),
    "llama with linear rope": (
        "llama",
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 1000.0, "factor": 2.0}},
    ),
    "llama with yarn rope": ("llama", {"rope_parameters": YARN_ROPE}),
    "mistral": ("mistral", {"sliding_window": None}),
    "mistral with a window": ("mistral", {"sliding_window": 7}),
    "qwen2": ("qwen2", {}),
    "qwen2 with windows": ("qwen2", {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}),
    "qwen2 with yarn rope": ("qwen2", {"rope_parameters": YARN_ROPE | {"beta_fast": 4.0, "truncate": False}}),
    "qwen3": ("qwen3", {}),
    "qwen3 with biases and a tied head": ("qwen3", {"attention_bias": True, "tie_word_embeddings": True}),
}

# Logits of the tiny models have a standard deviation of 1. In float32 two orders of summing differ by 5e-6; in bfloat16
# (8 bits) ours and those of transformers are each about 0.1 off the float32 ones, and up to 0.15 off each other.
TOLERANCES = {torch.float32: {"rtol": 2e-5, "atol": 2e-5}, torch.bfloat16: {"rtol": 0.02, "atol": 0.2}}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Tiny tensors gain nothing from threads, and torch's threads suffer from each other's company."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Makes the Hugging Face folder of a tiny random model, once: `tiny_model_dir("qwen3")`."""
    made: dict[tuple[str, str], Path] = {}

    def make(name: str = "llama", *, max_shard_size: str = "1GB") -> Path:
        key = name, max_shard_size
        if key not in made:
            made[key] = tmp_path_factory.mktemp("tiny") / name.replace(" ", "-")
            tiny_transformers_model(name).save_pretrained(made[key], max_shard_size=max_shard_size)
        return made[key]

    return make


def tiny_transformers_model(name: str) -> Any:
    """A transformers model whose every parameter is random, norms and biases too, so that none can be overlooked."""
    model_type, overrides = TINY_MODELS[name]
    values = BASE | dict(overrides)
    if model_type == "qwen2":
        del values["head_dim"]  # Qwen2 has no such key
    config = AutoConfig.for_model(model_type, **values)
    config._attn_implementation = "eager"
    torch.manual_seed(len(name))
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    for parameter_name, parameter in model.named_parameters():
        with torch.no_grad():
            parameter.normal_(mean=1.0 if "norm" in parameter_name else 0.0, std=0.2)
    return model


class PagedKV:
    """A KV cache whose blocks are poisoned, so that reading a place that was never written shows."""

    def __init__(self, model: Llama, *, num_blocks: int, block_size: int) -> None:
        shape = (num_blocks, block_size, model.config.num_kv_heads, model.config.head_dim)
        self._k = [torch.full(shape, torch.nan, dtype=model.dtype) for _ in range(model.config.num_layers)]
        self._v = [torch.full(shape, torch.nan, dtype=model.dtype) for _ in range(model.config.num_layers)]

    def k(self, layer: int) -> Tensor:
        return self._k[layer]

    def v(self, layer: int) -> Tensor:
        return self._v[layer]


class PagedSequences:
    """Feeds a model with chunks of sequences whose blocks lie scattered in the cache."""

    def __init__(self, model: Llama, *, num_blocks: int = 48, block_size: int = 4) -> None:
        self.model = model
        self.block_size = block_size
        self.kv = PagedKV(model, num_blocks=num_blocks, block_size=block_size)
        self._free = list(range(num_blocks))
        random.Random(7).shuffle(self._free)
        self._tables: dict[str, list[int]] = {}
        self._lengths: dict[str, int] = {}

    def step(
        self,
        chunks: Sequence[tuple[str, Sequence[int]]],
        *,
        lora: LoraBatch | None = None,
        rows: Sequence[int] | None = None,
    ) -> Tensor:
        """Logits of all rows, or of `rows`, after each named sequence has grown by its chunk."""
        positions, write_index, starts = [], [], [0]
        for name, token_ids in chunks:
            table, begin = self._tables.setdefault(name, []), self._lengths.get(name, 0)
            end = begin + len(token_ids)
            while len(table) * self.block_size < end:
                table.append(self._free.pop())
            positions += range(begin, end)
            write_index += [
                table[p // self.block_size] * self.block_size + p % self.block_size for p in range(begin, end)
            ]
            starts.append(starts[-1] + len(token_ids))
            self._lengths[name] = end
        widest = max(len(self._tables[name]) for name, _ in chunks)
        tables = [self._tables[name] + [0] * (widest - len(self._tables[name])) for name, _ in chunks]
        batch = Batch(
            token_ids=torch.tensor([token_id for _, token_ids in chunks for token_id in token_ids]),
            positions=torch.tensor(positions),
            write_index=torch.tensor(write_index),
            query_starts=torch.tensor(starts, dtype=torch.int32),
            context_lens=torch.tensor([self._lengths[name] for name, _ in chunks], dtype=torch.int32),
            block_tables=torch.tensor(tables, dtype=torch.int32),
            logit_rows=torch.tensor(range(starts[-1]) if rows is None else rows, dtype=torch.int64),
            lora=lora,
        )
        with torch.inference_mode():
            return self.model.forward(batch, self.kv)


@pytest.fixture
def paged() -> type[PagedSequences]:
    """`paged(model).step([("a", ids)])`: logits through a scattered, poisoned KV cache."""
    return PagedSequences


@pytest.fixture
def prompt_ids() -> Callable[..., list[int]]:
    """`prompt_ids(30)`: random token ids of the tiny vocabulary."""

    def make(length: int, *, seed: int = 0) -> list[int]:
        return [random.Random(f"{seed} {place}").randrange(BASE["vocab_size"]) for place in range(length)]

    return make


@pytest.fixture
def close() -> dict[torch.dtype, dict[str, float]]:
    """Keyword arguments of torch.testing.assert_close, by the dtype of the model."""
    return TOLERANCES


@pytest.fixture(scope="session")
def tiny_served_dir(tiny_model_dir: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny Llama with a tokenizer: every token is one printable character."""
    folder = tmp_path_factory.mktemp("served") / "tiny"
    shutil.copytree(tiny_model_dir("llama"), folder)
    write_tokenizer(folder)
    return folder


@pytest.fixture
def tiny_adapter(tmp_path: Path) -> Callable[..., Path]:
    """Writes the PEFT folder of a random adapter for the tiny Llama: `tiny_adapter("a", seed=1, rank=8)`."""

    def write(name: str, **traits: Any) -> Path:
        return write_adapter(tmp_path / name, **traits)

    return write


@dataclass(frozen=True)
class OpenWorker:
    """A worker in this process, and a stub that reaches it over loopback."""

    core: Core
    service: InferenceService
    stub: pb_grpc.InferenceServiceAsyncStub
    address: str

    async def generate(self, prompt: Sequence[int], *adapters: str, max_tokens: int = 8, **fields: Any) -> list[Any]:
        """Every message of a greedy answer."""
        request = pb.GenerateRequest(
            token_ids=pb.TokenIds(ids=prompt),
            adapters=[pb.AdapterUse(reference=reference) for reference in adapters],
            stop=pb.StopConditions(max_tokens=max_tokens, ignore_eos=True),
            **fields,
        )
        return [message async for message in self.stub.Generate(request, timeout=60)]

    async def tokens(self, prompt: Sequence[int], *adapters: str, max_tokens: int = 8) -> list[int]:
        """The ids of a greedy answer."""
        found = await self.generate(prompt, *adapters, max_tokens=max_tokens)
        return [token_id for message in found for token_id in message.chunk.token_ids]


@pytest.fixture
def open_worker(tiny_served_dir: Path, tmp_path: Path) -> Callable[..., AbstractAsyncContextManager[OpenWorker]]:
    """`async with open_worker(adapters=("a=FOLDER",)) as worker`: any field of Settings."""
    # A tiny arena, as asking the system for memory takes longer than the rest.
    settings = Settings(
        model=tiny_served_dir,
        listen="127.0.0.1:0",
        state_dir=tmp_path / "state",
        dtype="float32",
        threads=1,
        adapter_memory=4 * 2**20,
        kv_memory=4 * 2**20,
        check_adapters=True,
    )

    @asynccontextmanager
    async def start(**fields: Any) -> AsyncIterator[OpenWorker]:
        changed = replace(settings, **fields)
        async with open_core(changed) as core, open_service(changed, core) as service:
            descriptor = pb.DESCRIPTOR.services_by_name["InferenceService"]
            door = Service(descriptor, pb_grpc.add_InferenceServiceServicer_to_server, service)
            server = Server([door], listen=changed.listen, security=Security())
            await server.start()
            address = f"127.0.0.1:{server.port}"
            async with grpc.aio.insecure_channel(address) as channel:
                yield OpenWorker(core, service, pb_grpc.InferenceServiceStub(channel), address)
            await server.drain(0)

    return start
