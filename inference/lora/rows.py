"""The rows of the embedding and the head that an adapter brings along: whose they are, and what they hold.

    file: copy, saved, tokens (see adapter.ends) ──find_rows──► token ids ──read──► weights [K, D]

A row takes the place of the base model's, with the adapter's LoRA in it: W[t] + scale·B·A, in float32 and rounded once.
Only rows that differ are brought along, so a vocabulary with two tokens added takes two rows, and a fully trained head
all of them.

Where the base model's head is tied to its embedding, PEFT gives the head what the embedding has: a copy, as both are
one weight, and trained tokens, by a tied layer. It does not give it a saved embedding, which is another weight.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from adapter.ends import OwnEnd, TrainedTokens, differing_sizes
from adapter.errors import AdapterRefused
from adapter.header import Header
from adapter.plan import AdapterPlan, LoraModule
from inference.lora.base import BLOCK_BYTES, EMBEDDING, HEAD, BaseWeights
from inference.lora.dora import MAX_PRODUCT
from inference.lora.tensors import BFLOAT16, Array, narrow, read_part, read_tensor, widen

FLOAT32 = np.dtype(np.float32)


@dataclass(frozen=True, slots=True)
class OwnRows:
    """What is to be read for one end: the rows [width] of `token_ids`, int32 [K] ascending.

    vocab_size: the tokens that the adapter knows, added ones too. weight_key: of a whole weight to read the rows from,
    None where the trained tokens' are all; tokens: whose rows replace those; lora: what is added to them.
    """

    module: str
    vocab_size: int
    width: int
    token_ids: NDArray[np.int32]
    weight_key: str | None
    tokens: TrainedTokens | None
    lora: LoraModule | None

    @property
    def is_whole(self) -> bool:
        """Whether every token has a row of its own."""
        return self.token_ids.size == self.vocab_size

    def read(self, file: BinaryIO, header: Header, out: Array) -> None:
        """Shapes: out [K, width], float32 or BFLOAT16. Mutates: out. Raises AdapterRefused, OSError and EOFError."""
        if self.lora is None:
            self._read(file, header, out)
            return
        rows = np.empty(out.shape, np.float32)
        self._read(file, header, rows)
        _add_lora(file, header, self.lora, self.token_ids, rows=rows)
        out[:] = narrow(rows, out.dtype, what=f"module {self.module}")

    def _read(self, file: BinaryIO, header: Header, out: Array) -> None:
        if self.weight_key is not None:
            for first, part in self._blocks(file, header, self.weight_key, out.dtype):
                out[first : first + len(part)] = part
        if self.tokens is not None:
            trained = read_tensor(file, header, self.tokens.key, out.dtype).reshape(-1, self.width)
            out[np.searchsorted(self.token_ids, self.tokens.token_ids)] = trained

    def _blocks(
        self, file: BinaryIO, header: Header, key: str, dtype: np.dtype[np.generic]
    ) -> Iterator[tuple[int, Array]]:
        """The wanted rows in parts, each with the place of its first one, from the blocks that hold any."""
        step = max(1, BLOCK_BYTES // (4 * self.width))
        for row in range(0, self.vocab_size, step):
            end = min(row + step, self.vocab_size)
            first, last = np.searchsorted(self.token_ids, [row, end])
            if last > first:
                part = read_part(file, header, key, row * self.width, end * self.width, dtype=dtype)
                yield int(first), part.reshape(-1, self.width)[self.token_ids[first:last] - row]


def find_rows(path: Path, header: Header, plan: AdapterPlan, *, base: BaseWeights) -> tuple[OwnRows, ...]:
    """The ends at which the adapter differs from the base model, the embedding first; empty where at none.

    Reads whole weights to compare them with the base model's. Raises AdapterRefused for what has no one meaning or
    cannot be served, and when a file cannot be read.
    """
    ends = {end.name: end for end in plan.ends}
    if strange := sorted(ends.keys() - {EMBEDDING, HEAD}):
        raise AdapterRefused([f"module {name}: adapters do not act there in this release" for name in strange])
    if not ends:
        return ()
    loras = {module.name: module for module in plan.modules}
    embedding, head = ends.get(EMBEDDING), ends.get(HEAD)
    try:
        with path.open("rb", buffering=0) as file:
            if base.has_tied_head:
                _check_tie(file, header, embedding, head, loras)
            found = [
                _find(file, header, EMBEDDING, embedding, other=head, lora=loras.get(EMBEDDING), base=base),
                _find(file, header, HEAD, head, other=embedding, lora=loras.get(HEAD), base=base),
            ]
    except (OSError, EOFError) as error:
        raise AdapterRefused([f"{path.name}: cannot be read: {error}"]) from error
    sizes = {rows.module: rows.vocab_size for rows in found if rows is not None}
    sizes = {module: sizes.get(module, base.shape(module)[0]) for module in (EMBEDDING, HEAD)}
    if len(set(sizes.values())) > 1:
        raise AdapterRefused([differing_sizes(sizes)])
    return tuple(rows for rows in found if rows is not None)


def _find(
    file: BinaryIO,
    header: Header,
    module: str,
    own: OwnEnd | None,
    *,
    other: OwnEnd | None,
    lora: LoraModule | None,
    base: BaseWeights,
) -> OwnRows | None:
    """One end's rows; None where they are the base model's. `other` is what the file holds for the other end."""
    saved_key = own.saved_key if own is not None else None
    copy_key = own.copy_key if own is not None else None
    tokens = own.tokens if own is not None else None
    if base.has_tied_head and other is not None:
        copy_key = copy_key or other.copy_key
        if module == HEAD and saved_key is None:
            tokens = tokens or other.tokens
    weight_key = saved_key or copy_key
    known, width = base.shape(module)
    changed, vocab_size = np.empty(0, np.int32), known
    if weight_key is not None:
        vocab_size = header.tensors[weight_key].shape[0]
        # Trainers keep a copy in a dtype of their own choice; what training changed differs in bfloat16 too.
        dtype = base.dtype if saved_key is not None else BFLOAT16
        same = min(known, vocab_size)
        changed = np.r_[
            base.changed_rows(file, header, weight_key, module=module, num_rows=same, dtype=dtype),
            np.arange(same, vocab_size),
        ]
    token_ids = np.union1d(changed, [] if tokens is None else tokens.token_ids).astype(np.int32)
    if not token_ids.size and vocab_size == known:
        return None
    if lora is not None and (lora.magnitude_key is not None or lora.bias_key is not None):
        raise AdapterRefused([f"module {module}: DoRA or a bias beside rows that were changed is not served"])
    return OwnRows(module, vocab_size, width, token_ids, weight_key, tokens, lora)


def _check_tie(
    file: BinaryIO, header: Header, embedding: OwnEnd | None, head: OwnEnd | None, loras: dict[str, LoraModule]
) -> None:
    """Raises AdapterRefused for two ends that PEFT cannot apply to one weight."""
    if embedding is None:
        return
    if embedding.tokens is not None and (HEAD in loras or (head is not None and head.saved_key is not None)):
        raise AdapterRefused([f"module {HEAD}: LoRA or full training beside trained tokens of its tie is not served"])
    if head is None or head.copy_key is None or embedding.copy_key is None:
        return
    size, step = embedding.num_rows * embedding.width, BLOCK_BYTES // 4
    for begin in range(0, size, step):
        one, other = (
            read_part(file, header, key, begin, min(begin + step, size), dtype=BFLOAT16)
            for key in (embedding.copy_key, head.copy_key)
        )
        if not np.array_equal(one, other):
            expected = f"what {embedding.copy_key!r} holds, as the base model ties them"
            raise AdapterRefused([f"tensor {head.copy_key!r}: expected {expected}, found something else"])


def _add_lora(
    file: BinaryIO, header: Header, lora: LoraModule, token_ids: NDArray[np.int32], *, rows: NDArray[np.float32]
) -> None:
    """rows [K, D] += the adapter's LoRA for these tokens. Mutates: rows."""
    a = widen(read_tensor(file, header, lora.a_key, FLOAT32)).reshape(lora.rank, lora.in_features)
    b = widen(read_tensor(file, header, lora.b_key, FLOAT32)).reshape(lora.out_features, lora.rank)
    # Of an embedding A has a column for each token, of a head B a row.
    by_token, shared = (a.T, b.T) if lora.name == EMBEDDING else (b, a)
    step = max(1, MAX_PRODUCT // shared.size)
    for first in range(0, len(token_ids), step):
        part = slice(first, first + step)
        rows[part] += (np.float32(lora.scale) * by_token[token_ids[part]]) @ shared
