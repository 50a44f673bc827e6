"""Faults that CUDA kernels classically have, put into ours one at a time.

Written from a list of such faults (barriers, pipelines, guards, offsets, what is not initialised, fragments, padding)
before the tests and the other mutants were looked at, so that the tests are not judged by what they were made to find.
Those of the 111 that mutants.py had word for word are only there.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Fault:
    """`old` becomes `new` in a file of kernels/cuda, at its only place or at all of `count`."""

    name: str
    file: str
    old: str
    new: str
    count: int = 1


FAULTS = (
    # Barriers and shuffles.
    Fault(
        "a warp's barrier for the block's",
        "rows.cu",
        "  }\n  __syncthreads();\n  if (warp >= count",
        "  }\n  __syncwarp();\n  if (warp >= count",
    ),
    Fault(
        "a barrier that some threads never reach",
        "rows.cu",
        "  __syncthreads();\n  if (warp >= count || !is_inside) return;",
        "  if (warp >= count || !is_inside) return;\n  __syncthreads();",
    ),
    Fault("a reduction that stops at two lanes", "rows.cu", "mask; mask /= 2", "mask > 1; mask /= 2"),
    Fault(
        "a shuffle of half a warp",
        "rows.cu",
        "__shfl_xor_sync(ALL_LANES, sum, mask)",
        "__shfl_xor_sync(0xffffu, sum, mask)",
    ),
    Fault(
        "the next slot staged over the one in use",
        "tiles.cu",
        "    if (is_touched) __syncthreads();  // the entries",
        "    // the entries",
    ),
    # The pipeline of copies.
    Fault(
        "a group too many left under way in expand", "tiles.cu", "      wait_copies<0>();", "      wait_copies<1>();"
    ),
    Fault(
        "a commit only where something was copied",
        "tiles.cu",
        "    if (stage + STAGES - 1 < stages) load(stage + STAGES - 1);\n    commit_copies();",
        "    if (stage + STAGES - 1 < stages) {\n      load(stage + STAGES - 1);\n      commit_copies();\n    }",
    ),
    Fault("buffers swapped", "tiles.cu", "&features[stage % STAGES][(warp", "&features[(stage + 1) % STAGES][(warp"),
    Fault(
        "a prefetch into the stage in use",
        "tiles.cu",
        "load(stage + STAGES - 1);\n    commit",
        "load(stage + STAGES);\n    commit",
    ),
    Fault("the partial last stage left out", "tiles.cu", "(end - begin + DEPTH - 1) / DEPTH", "(end - begin) / DEPTH"),
    Fault(
        "one buffer of B for two chunks", "tiles.cu", "shared.in.weights[chunk % 2][(lane", "shared.in.weights[0][(lane"
    ),
    Fault("copies past the end not zeroed", "ptx.cuh", "is_valid ? 16 : 0", "16"),
    # Guards.
    Fault("a row too many", "tiles.cu", "from[j] = m < unit.count ?", "from[j] = m <= unit.count ?"),
    Fault(
        "a column too many in expand",
        "rows.cu",
        "is_inside = tile.local + column < tile.width;\n  Sums<ROWS>",
        "is_inside = tile.local + column <= tile.width;\n  Sums<ROWS>",
    ),
    Fault("B's columns not guarded", "tiles.cu", "is_valid = from < rank && is_inside", "is_valid = from < rank"),
    Fault("weights past the slice", "tiles.cu", "rank0 + r < rank && k < end", "rank0 + r < rank"),
    Fault("B's rows past the rank", "rows.cu", "min(r0 + k * WARPS, rank - 1)", "(r0 + k * WARPS)"),
    Fault(
        "rows past the unit stored", "tiles.cu", "    if (m < count) {\n      const float4", "    {\n      const float4"
    ),
    Fault(
        "a block too many begins a unit",
        "rows.cu",
        "if ((entry - starts[segment]) % ROWS) return",
        "if ((entry - starts[segment]) % (ROWS / 2)) return",
    ),
    Fault("a unit past its segment", "rows.cu", "min(ROWS, starts[segment + 1] - entry)", "ROWS"),
    Fault(
        "a window past its segment",
        "tiles.cu",
        "min(starts[span + 1], (first / ROWS + 1) * ROWS)",
        "((first / ROWS + 1) * ROWS)",
    ),
    Fault(
        "a segment past its window", "tiles.cu", "min(starts[span + 1], (first / ROWS + 1) * ROWS)", "starts[span + 1]"
    ),
    Fault("the tail of k, v's row left out", "cache.cu", "i < vectors; i +=", "i < vectors / 128 * 128; i +="),
    # Strides, offsets and indices.
    Fault(
        "rows of x taken as dense",
        "rows.cu",
        "x + rows[unit.first + t] * x_stride + begin",
        "x + (i64)rows[unit.first + t] * in_features + begin",
    ),
    Fault(
        "rows of x taken as dense by tiles",
        "tiles.cu",
        "rows[unit.first + m] * x_stride : -1",
        "(i64)rows[unit.first + m] * in_features : -1",
    ),
    Fault(
        "an offset of x in 32 bits",
        "rows.cu",
        "x + rows[unit.first + t] * x_stride + begin",
        "x + (int)(rows[unit.first + t] * x_stride) + begin",
    ),
    Fault(
        "an offset of y in 32 bits",
        "rows.cu",
        "add_in_place(y + row * y_stride + column, total)",
        "add_in_place(y + (int)(row * y_stride) + column, total)",
    ),
    Fault(
        "an offset of y in 32 bits by tiles",
        "tiles.cu",
        "add_in_place(y + rows[m] * y_stride + tile",
        "add_in_place(y + (int)(rows[m] * y_stride) + tile",
    ),
    Fault(
        "entries taken for rows",
        "rows.cu",
        "const int row = rows[unit.first + min(warp, unit.count - 1)];",
        "const int row = unit.first + min(warp, unit.count - 1);",
    ),
    Fault("entries taken for rows by tiles", "tiles.cu", "y + rows[m] * y_stride", "y + m * y_stride"),
    Fault(
        "the slice's features not skipped",
        "rows.cu",
        "row * in_features + begin);\n  }\n\n  float",
        "row * in_features);\n  }\n\n  float",
    ),
    Fault(
        "the slice's features not skipped by tiles",
        "tiles.cu",
        "const int k = begin + stage * DEPTH + column",
        "const int k = stage * DEPTH + column",
    ),
    Fault(
        "slices of s read at another distance",
        "rows.cu",
        "sum_slices(s, place, (i64)num_entries * s_width, num_slices)",
        "sum_slices(s, place, (i64)s_width, num_slices)",
    ),
    Fault(
        "the part's ranks not skipped",
        "rows.cu",
        "(i64)(first + t) * s_width + before + r",
        "(i64)(first + t) * s_width + r",
    ),
    Fault(
        "the first part's B",
        "rows.cu",
        "arena + b_start[place] + tile.local + column, tile.width, is_inside);\n  const int row",
        "arena + b_start[(i64)unit.slot * num_parts] + tile.local + column, tile.width, is_inside);\n  const int row",
    ),
    Fault(
        "the first part's B by tiles",
        "tiles.cu",
        "arena + b_start[place]};",
        "arena + b_start[(i64)slot * num_parts]};",
    ),
    Fault(
        "the segment's number for the slot",
        "tiles.cu",
        "const Unit unit = {window.first, window.count, slots[window.span]};\n  const Share",
        "const Unit unit = {window.first, window.count, window.span};\n  const Share",
    ),
    Fault(
        "the segment's number for the slot in shrink",
        "rows.cu",
        "min(ROWS, starts[segment + 1] - entry), slots[segment]}",
        "min(ROWS, starts[segment + 1] - entry), segment}",
    ),
    Fault(
        "B's rows as wide as the output",
        "rows.cu",
        "reinterpret_cast<const uint4*>(b + r * width)",
        "reinterpret_cast<const uint4*>(b + r * (width + 8))",
    ),
    Fault(
        "columns counted from the output's beginning",
        "rows.cu",
        "arena + b_start[place] + tile.local + column, tile.width, is_inside);\n  const int row",
        "arena + b_start[place] + tile.begin + column, tile.width, is_inside);\n  const int row",
    ),
    Fault(
        "a part written where it begins in itself",
        "site.cuh",
        "{part, begin + tile * tile_width, tile * tile_width, width}",
        "{part, tile * tile_width, tile * tile_width, width}",
    ),
    Fault("tiles of the parts before not skipped", "site.cuh", "    tile -= tiles;\n", ""),
    Fault("a ragged tile not counted", "site.cuh", "(width + tile_width - 1) / tile_width", "width / tile_width"),
    Fault(
        "a rank too many skipped",
        "site.cuh",
        "for (int p = 0; p < part; p++)",
        "for (int p = 0; p <= part && p < num_parts; p++)",
    ),
    Fault(
        "a group's rows taken from its beginning",
        "tiles.cu",
        "group_rows + window.first, window.count",
        "group_rows + group_starts[window.span], window.count",
    ),
    Fault(
        "a group's entries taken from its beginning",
        "tiles.cu",
        "first_entries[i] + window.first - group_starts[window.span]",
        "first_entries[i]",
    ),
    Fault(
        "a group's last slot left out",
        "tiles.cu",
        "i < member_starts[window.span + 1]; i++",
        "i < member_starts[window.span + 1] - 1; i++",
    ),
    Fault("a group's slots taken for its entries'", "tiles.cu", "slots[segment_of[first_entries[i]]]", "slots[i]"),
    Fault("k's stride for v", "cache.cu", "v + blockIdx.x * v_stride", "v + blockIdx.x * k_stride"),
    Fault(
        "A read along its rows in a look-up",
        "lookup.cu",
        "(i64)r * in_features + token_ids[rows[entry]]",
        "(i64)token_ids[rows[entry]] * in_features + r",
    ),
    # What is not initialised, or added twice.
    Fault("sums that begin as they are", "rows.cu", "  Sums<1> sums = {};", "  Sums<1> sums;"),
    Fault(
        "sums that begin anew with each slot",
        "tiles.cu",
        "    if (share.rank == 0) continue;\n    if (is_touched)",
        "    if (share.rank == 0) continue;\n    for (auto& sums : c) sums[0] = sums[1] = 0.f;\n    if (is_touched)",
    ),
    Fault("y overwritten", "ptx.cuh", "  v = add(v, values);\n", "  v = pack(values);\n"),
    Fault("y left as it is", "ptx.cuh", "  v = add(v, values);\n", ""),
    Fault("untouched rows written by tiles", "tiles.cu", "  if (!is_touched) return;\n", ""),
    Fault("a part of no rank written", "rows.cu", "  if (rank == 0) return;\n\n  stage(", "  stage("),
    # Numbers.
    Fault(
        "the scale left out",
        "tiles.cu",
        "entry_weights[unit.first + m] * share.scale * sum",
        "entry_weights[unit.first + m] * sum",
    ),
    Fault("the first slice left out", "site.cuh", "for (int z = 0; z < num_slices", "for (int z = 1; z < num_slices"),
    Fault("the last slice left out", "site.cuh", "z < num_slices; z++", "z < num_slices - 1; z++"),
    Fault("halves of a word swapped", "element.cuh", '"f"(second), "f"(first)', '"f"(first), "f"(second)', count=2),
    Fault(
        "past float16's range, split all the same",
        "element.cuh",
        "return fabsf(value) < 65520.f;",
        "return fabsf(value) < 1e30f;",
    ),
    Fault(
        "the exact sums of eight rows misplaced",
        "tiles.cu",
        "value(warp * 16 + 8 + lane / 4, r)",
        "value(warp * 16 + lane / 4, r)",
    ),
    # Fragments.
    Fault(
        "rows of a fragment swapped",
        "tiles.cu",
        "const int m = warp * 16 + half * 8 + lane / 4;\n      *reinter",
        "const int m = warp * 16 + (1 - half) * 8 + lane / 4;\n      *reinter",
    ),
    Fault(
        "rows of a fragment swapped in shrink",
        "tiles.cu",
        "const int m = warp * 16 + half * 8 + lane / 4;\n      if (m",
        "const int m = warp * 16 + (1 - half) * 8 + lane / 4;\n      if (m",
    ),
    Fault("columns of a fragment shifted", "tiles.cu", "n * 8 + lane % 4 * 2]) =\n", "n * 8 + lane % 8]) =\n"),
    Fault(
        "eight rows of x twice",
        "tiles.cu",
        "(warp * 16 + lane % 16) * STRIDE + lane / 16 * 8",
        "(warp * 16 + lane % 8) * STRIDE + lane / 16 * 8",
    ),
    Fault(
        "halves of A's matrices swapped",
        "tiles.cu",
        "(lane / 16 * 8 + lane % 8) * STRIDE + lane / 8 % 2 * 8",
        "(lane / 8 % 2 * 8 + lane % 8) * STRIDE + lane / 16 * 8",
    ),
    Fault("B as it lies", "ptx.cuh", "x4.trans.shared", "x4.shared"),
    Fault(
        "the next sixteen features left out",
        "tiles.cu",
        "      load_matrices(x_matrices, x_stage + k);",
        "      load_matrices(x_matrices, x_stage);",
    ),
    Fault("bfloat16 multiplied as float16", "ptx.cuh", "f32.bf16.bf16.f32", "f32.f16.f16.f32"),
    # Padding and vectors.
    Fault(
        "padding taken for segment 0",
        "rows.cu",
        "if (segment < 0) return {entry, 0, 0};",
        "if (segment < -1) return {entry, 0, 0};",
    ),
    Fault("padding taken for a segment by tiles", "tiles.cu", "if (span < 0) return", "if (span < -1) return"),
    Fault("padding looked up", "lookup.cu", "if (segment < 0) return;", "if (segment < -1) return;"),
    Fault("padding written to the cache", "cache.cu", "if (place < 0) return;", "if (place < -1) return;"),
    Fault("padding rescaled", "affine.cu", "  if (begin == end) return;  // padding", "  // padding"),
    Fault("gain and shift swapped", "affine.cu", "if (kind & 1) {", "if (kind & 2) {"),
    Fault("a shift not weighted", "affine.cu", "fmaf(weight, vector[j], values[j])", "fmaf(1.f, vector[j], values[j])"),
    Fault(
        "the second half of a vector twice",
        "affine.cu",
        "reinterpret_cast<const float4*>(from)[half]",
        "reinterpret_cast<const float4*>(from)[1]",
    ),
)
