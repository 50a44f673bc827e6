from __future__ import annotations

import torch

from kernels import group, reference


def test_shrink_and_expand_are_the_dense_products_of_each_row(make_adapters):
    adapters = make_adapters([(4, 0), (3, 5)], 32, (16, 24), torch.float32)
    site, arena = adapters.site, adapters.arena
    uses = [[(1, 0.5)], [], [(0, 1.0), (1, 2.0)]]
    x, y = torch.randn(3, 32), torch.randn(3, 40)
    expected = y.clone()
    for row, entries in enumerate(uses):
        for slot, weight in entries:
            begin = int(site.a_start[slot])
            for part in range(2):
                rank, width = int(site.ranks[slot, part]), site.columns[part + 1] - site.columns[part]
                a = arena[begin : begin + rank * 32].view(rank, 32)
                begin += rank * 32
                at = int(site.b_start[slot, part])
                b = arena[at : at + rank * width].view(rank, width).T
                expected[row, site.columns[part] : site.columns[part + 1]] += (
                    weight * site.scales[slot, part] * (b @ (a @ x[row]))
                )
    segments = group(uses)
    assert segments is not None
    s = reference.shrink(x, arena, site, segments, max_rank=8)
    reference.expand(s, arena, site, segments, y)
    torch.testing.assert_close(y, expected)


def test_attend_is_torchs_attention_over_the_gathered_blocks(make_paged):
    paged = make_paged([(30, 30)], heads=(4, 2), size=32, block_size=8, dtype=torch.float32)
    blocks = paged.arguments["block_tables"][0, :4].long()
    k, v = (cache[blocks].flatten(0, 1)[:30].transpose(0, 1) for cache in (paged.k_cache, paged.v_cache))
    expected = torch.nn.functional.scaled_dot_product_attention(
        paged.q.transpose(0, 1), k, v, is_causal=True, enable_gqa=True
    )
    actual = reference.attend(paged.q, paged.k_cache, paged.v_cache, **paged.arguments)
    torch.testing.assert_close(actual, expected.transpose(0, 1))


def test_a_window_sees_itself_and_those_just_before(make_paged):
    paged = make_paged([(9, 9)], heads=(1, 1), size=32, block_size=16, dtype=torch.float32, window=1)
    block = int(paged.arguments["block_tables"][0, 0])
    actual = reference.attend(paged.q, paged.k_cache, paged.v_cache, **paged.arguments)
    torch.testing.assert_close(actual[:, 0], paged.v_cache[block, :9, 0])


def test_rms_norm_is_torchs():
    x, weight = torch.randn(3, 40), torch.randn(40)
    expected = torch.nn.functional.rms_norm(x, (40,), weight, 1e-5)
    torch.testing.assert_close(reference.rms_norm(x, weight, 1e-5), expected)


def test_rotary_is_a_complex_product():
    q, angle = torch.randn(5, 2, 32), torch.randn(5, 16)
    pairs = torch.complex(q[..., :16], q[..., 16:]) * torch.polar(torch.ones(5, 16), angle)[:, None]
    reference.rotary(q, q.clone(), angle.cos(), angle.sin())
    torch.testing.assert_close(q, torch.cat([pairs.real, pairs.imag], dim=-1))
