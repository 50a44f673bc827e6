"""Computes a step: chunks to tensors, through the model, to tokens. Knows tensors; decides nothing."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from inference.engine.batch import HostBatch, lay_out
from inference.engine.choosing import choose
from inference.engine.engine import RequestsFailed
from inference.engine.graphs import DecodeGraphs, Model
from inference.engine.kv_cache import KVCache
from inference.engine.sequence import Chunk, Sampled
from inference.errors import InferenceError
from inference.lora.bank import Bank


class Runner:
    """One model, its KV cache and its adapters. Called from one thread.

    With `graphs` a step of nothing but decodes is padded and captured, and is one launch when its like comes again.
    """

    def __init__(self, model: Model, kv_cache: KVCache, bank: Bank, graphs: DecodeGraphs | None = None) -> None:
        self._model = model
        self._kv_cache = kv_cache
        self._bank = bank
        self._graphs = graphs

    @torch.inference_mode()
    def run(self, chunks: list[Chunk]) -> list[Sampled | InferenceError]:
        """One entry for each chunk that samples, in order; an error where there is no token to choose.

        On a device nothing is waited for but the tokens. Raises RequestsFailed for requests whose slot does not hold
        the weights that they name; nothing is computed.
        """
        self._check_owners(chunks)
        self._kv_cache.copy_blocks([chunk.copy for chunk in chunks if chunk.copy is not None])
        host = self._lay_out(chunks)
        try:
            logits = self._logits(host)
        finally:
            self._bank.mark_step()
        return choose(logits, chunks)

    def _logits(self, host: HostBatch) -> Tensor:
        if self._graphs is not None and host.is_capturable:
            return self._graphs.logits(host)
        return self._model.forward(host.send(self._kv_cache.device), self._kv_cache)

    def _lay_out(self, chunks: list[Chunk]) -> HostBatch:
        host = lay_out(chunks, block_size=self._kv_cache.block_size)
        uses = [(chunk.length, [(use.slot, use.weight) for use in chunk.sequence.request.uses]) for chunk in chunks]
        lora = self._bank.lora_batch(uses, logit_rows=None if host.is_decode else host.logit_rows)
        return dataclasses.replace(host, lora=lora)

    def _check_owners(self, chunks: list[Chunk]) -> None:
        owners = self._bank.owners
        wrong = [
            (chunk.sequence.request.id, use, owners[use.slot])
            for chunk in chunks
            for use in chunk.sequence.request.uses
            if owners[use.slot] != use.digest
        ]
        if wrong:
            _, use, owner = wrong[0]
            raise RequestsFailed(
                f"slot {use.slot}: expected the weights of {use.digest}, found those of {owner}",
                request_ids=list({request_id: None for request_id, _, _ in wrong}),
            )
