"""Every op in plain torch: the definition that the fast paths are tested against, on any device and in any float dtype.

Written to be read, not to be fast: it loops over segments, sequences and heads' groups, converts to float32 before any
arithmetic and rounds once at the end. It checks nothing; `kernels` does before it calls.

A batch may be padded (kernels.segments.Grouping): what belongs to no row keeps every bit.

Letters: T rows, S segments, M entries, N slots, P parts, R the ranks' sum of a slot, D_in and D_out features,
B sequences, H query heads, H_kv key heads, D head size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.segments import Segments
from kernels.site import Affine, Site, Vectors


def shrink(x: Tensor, arena: Tensor, site: Site, segments: Segments, *, max_rank: int) -> Tensor:
    """Features to rank: s[m] = x[rows[m]] · Aᵀ of entry m's slot; neither scaled nor weighted yet.

    Shapes: x [T, D_in]; arena [elements]; returns s float32 [M, max_rank]. Entry m's first R columns are the slot's
    parts, one after the other; the columns beyond are unspecified. `max_rank` is at least the R of every slot used.
    Mutates: nothing. Raises: nothing.
    Source: Hu et al., LoRA (arXiv 2106.09685); gathered per row as in Punica (arXiv 2310.18547).
    """
    s = torch.zeros(segments.num_entries, max_rank, dtype=torch.float32, device=x.device)
    for begin, end, slot in _segments(segments):
        rank = int(site.ranks[slot].sum())
        a = _rank_rows(arena, int(site.a_start[slot]), rank, site.in_features)
        s[begin:end, :rank] = x[segments.rows[begin:end].long()].float() @ a.T
    return s


def look_up(token_ids: Tensor, arena: Tensor, site: Site, segments: Segments, *, max_rank: int) -> Tensor:
    """shrink where a row's features are one token: s[m] = A[:, token_ids[rows[m]]], as x would be 1 there and else 0.

    Shapes: token_ids int64 [T], below D_in, the size of the vocabulary; the rest as shrink. Mutates, Raises: nothing.
    Source: LoRA on an embedding as in PEFT (tuners/lora/layer.py).
    """
    s = torch.zeros(segments.num_entries, max_rank, dtype=torch.float32, device=token_ids.device)
    for begin, end, slot in _segments(segments):
        rank = int(site.ranks[slot].sum())
        a = _rank_rows(arena, int(site.a_start[slot]), rank, site.in_features)
        s[begin:end, :rank] = a[:, token_ids[segments.rows[begin:end].long()]].T
    return s


def expand(s: Tensor, arena: Tensor, site: Site, segments: Segments, y: Tensor) -> None:
    """Rank to features: y[rows[m], part p] += weights[m] · scales[slot, p] · s[m, part p] · B_pᵀ, over all entries m.

    A row's entries add up in the order of the segments, in float32, and are rounded once to y's dtype. Rows without an
    entry and parts of rank 0 keep every bit.
    Shapes: s float32 [M, at least R]; arena [elements]; y [T, D_out]. Mutates: y. Raises: nothing.
    Source: as shrink.
    """
    total = y.float()
    for begin, end, slot in _segments(segments):
        rows = segments.rows[begin:end].long()
        column = 0
        for part, rank in enumerate(site.ranks[slot].tolist()):
            if rank > 0:
                first, last = site.columns[part], site.columns[part + 1]
                b = _rank_rows(arena, int(site.b_start[slot, part]), rank, last - first)
                factor = segments.weights[begin:end, None] * site.scales[slot, part]
                total[rows, first:last] += (factor * s[begin:end, column : column + rank]) @ b
            column += rank
    rows = segments.rows[: int(segments.starts[-1])].long()
    y[rows] = total[rows].to(y.dtype)


def rescale(y: Tensor, arena: Tensor, affine: Affine, segments: Segments) -> None:
    """Gains and shifts: y[rows[m], part p] = gain_p · y[rows[m], part p] + weights[m] · shift_p, over all entries m.

    A vector that a slot lacks is left out. A gain belongs to a row's only entry, whose weight is 1: with several there
    is no one meaning. Shifts of several entries are added in the order of the segments, each sum rounded to y's dtype.
    Rows without an entry and parts without vectors keep every bit.
    Shapes: y [T, D_out]; arena [elements]. Mutates: y. Raises: nothing.
    Source: the column norms of DoRA, Liu et al. (arXiv 2402.09353); `lora_bias` of PEFT.
    """
    vectors = arena[: arena.numel() // 2 * 2].view(torch.float32)
    for begin, end, slot in _segments(segments):
        rows = segments.rows[begin:end].long()
        for part, kind in enumerate(affine.kinds[slot].tolist()):
            if not kind:
                continue
            first, last = affine.columns[part], affine.columns[part + 1]
            at, values = int(affine.starts[slot, part]), y[rows, first:last].float()
            if kind & Vectors.GAIN:
                values *= vectors[at : at + last - first]
                at += last - first
            if kind & Vectors.SHIFT:
                values += segments.weights[begin:end, None] * vectors[at : at + last - first]
            y[rows, first:last] = values.to(y.dtype)


def write_kv(k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, index: Tensor) -> None:
    """Scatters keys and values to their positions: k_cache.flat[index[t]] = k[t], and so for v.

    Shapes: k, v [T, H_kv, D]; k_cache, v_cache [num_blocks, block_size, H_kv, D], whose first two dimensions index
    counts through; index int64 [T], distinct, or -1 for a row that pads a batch and goes nowhere.
    Mutates: k_cache, v_cache. Raises: nothing. Source: paged KV cache, Kwon et al. (arXiv 2309.06180).
    """
    is_kept = index >= 0
    k_cache.flatten(0, 1)[index[is_kept]] = k[is_kept]
    v_cache.flatten(0, 1)[index[is_kept]] = v[is_kept]


def attend(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    *,
    query_starts: Tensor,
    context_lens: Tensor,
    block_tables: Tensor,
    scale: float,
    window: int | None = None,
) -> Tensor:
    """Causal attention of the last positions of each sequence over its blocks: softmax(scale · q · kᵀ) · v.

    Sequence b owns the rows query_starts[b] to query_starts[b + 1]; they are the last of its context_lens[b] positions,
    whose keys and values are already in the cache. With `window`, a position sees itself and the window - 1 before it.
    Query head h reads key head h // (H / H_kv).
    Shapes: q [T, H, D]; k_cache, v_cache [num_blocks, block_size, H_kv, D]; query_starts int32 [B + 1]; context_lens
    int32 [B]; block_tables int32 [B, max_blocks], the tail beyond a sequence's blocks unspecified; returns [T, H, D].
    Mutates: nothing. Raises: nothing.
    Source: Vaswani et al. (arXiv 1706.03762), grouped heads of Ainslie et al. (arXiv 2305.13245).
    """
    out = torch.zeros_like(q, memory_format=torch.contiguous_format)
    block_size, group = k_cache.shape[1], q.shape[1] // k_cache.shape[2]
    starts = query_starts.tolist()
    for b, context in enumerate(context_lens.tolist()):
        begin, end = starts[b], starts[b + 1]
        if begin == end:
            continue
        blocks = block_tables[b, : -(-context // block_size)].long()
        k = k_cache[blocks].flatten(0, 1)[:context].float().repeat_interleave(group, dim=1)
        v = v_cache[blocks].flatten(0, 1)[:context].float().repeat_interleave(group, dim=1)
        position = torch.arange(context, device=q.device)
        query = position[context - (end - begin) :, None]
        is_seen = position <= query
        if window is not None:
            is_seen &= position > query - window
        scores = torch.einsum("qhd,khd->hqk", q[begin:end].float(), k) * scale
        weights = scores.masked_fill(~is_seen, float("-inf")).softmax(dim=-1)
        out[begin:end] = torch.einsum("hqk,khd->qhd", weights, v).to(q.dtype)
    return out


def rms_norm(x: Tensor, weight: Tensor, eps: float, residual: Tensor | None = None) -> Tensor:
    """Root mean square norm, over h = residual + x where a residual is given: weight · (h / sqrt(mean(h²) + eps)).

    h is rounded to x's dtype before the norm and written back to `residual`; the normed value is rounded once more
    before it meets the weight, as the models were trained.
    Shapes: x, residual [T, D]; weight [D]; returns [T, D]. Mutates: residual. Raises: nothing.
    Source: Zhang and Sennrich (arXiv 1910.07467); roundings as in transformers' LlamaRMSNorm.
    """
    if residual is not None:
        residual += x
        x = residual
    h = x.float()
    normed = h * torch.rsqrt(h.square().mean(-1, keepdim=True) + eps)
    return weight * normed.to(x.dtype)


def rotary(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> None:
    """Turns pairs of features by their position's angle: (a, b) becomes (a · cos - b · sin, b · cos + a · sin).

    The pairs of a head are features i and i + D_rot / 2; features from D_rot on keep every bit.
    Shapes: q [T, H, D]; k [T, H_kv, D]; cos, sin float32 [T, D_rot / 2], one row per row of q. q and k may be views of
    one fused projection: only the last two dimensions must be dense. Mutates: q, k. Raises: nothing.
    Source: Su et al. (arXiv 2104.09864), in the halves' order of the Llama models.
    """
    half = cos.shape[1]
    cos, sin = cos[:, None, :], sin[:, None, :]
    for x in (q, k):
        a, b = x[..., :half].float(), x[..., half : 2 * half].float()
        turned = a * cos - b * sin, b * cos + a * sin  # both before either is written: in float32 a and b are views
        x[..., :half], x[..., half : 2 * half] = turned[0].to(x.dtype), turned[1].to(x.dtype)


def silu_mul(gate_up: Tensor) -> Tensor:
    """The gated half of a feed-forward layer: silu(gate) · up, where gate_up = [gate, up] and silu(g) = g · sigmoid(g).

    Shapes: gate_up [T, 2 · D]; returns [T, D]. Mutates: nothing. Raises: nothing.
    Source: Shazeer, GLU Variants (arXiv 2002.05202).
    """
    gate, up = gate_up.float().chunk(2, dim=-1)
    return (torch.nn.functional.silu(gate) * up).to(gate_up.dtype)


def _segments(segments: Segments) -> list[tuple[int, int, int]]:
    """(first entry, entry after the last, slot) of each segment."""
    starts = segments.starts.tolist()
    spans = zip(starts[:-1], starts[1:], segments.slots.tolist(), strict=True)
    return [(begin, end, slot) for begin, end, slot in spans if end > begin]


def _rank_rows(arena: Tensor, start: int, rank: int, width: int) -> Tensor:
    return arena[start : start + rank * width].view(rank, width).float()
