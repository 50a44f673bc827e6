"""Classic CUDA faults, each as one change to a source: for the tests that see whether it is caught.

They were listed from experience first (missing barriers, tails, races, wrong lanes, lost factors, stale stages) and
only then looked for in the sources.
"""

from __future__ import annotations

from dataclasses import dataclass

from kernels.cuda.families import Family


@dataclass(frozen=True)
class Mutant:
    fault: str
    file: str
    right: str
    wrong: str


ROWS = [
    Mutant("no barrier after staging x", "rows.cu", "from[v];\n  }\n  __syncthreads();", "from[v];\n  }\n"),
    Mutant(
        "no barrier after staging s",
        "rows.cu",
        "num_slices);\n  __syncthreads();\n  const int warp",
        "num_slices);\n  const int warp",
    ),
    Mutant(
        "no barrier before the warps' sums are read",
        "rows.cu",
        "  }\n  __syncthreads();\n  if (warp >= count",
        "  }\n  if (warp >= count",
    ),
    Mutant("no barrier between a row's entries", "rows.cu", "    if (is_touched) __syncthreads();", "    "),
    Mutant("no barrier after staging an entry", "rows.cu", "num_slices);\n    __syncthreads();", "num_slices);\n"),
    Mutant(
        "a barrier that one warp alone reaches",
        "rows.cu",
        "  Sums<ROWS> sums = {};",
        "  if (warp == 0) __syncthreads();\n  Sums<ROWS> sums = {};",
    ),
    Mutant(
        "one vector too many",
        "rows.cu",
        "for (int v = lane; v < vectors; v += 32)",
        "for (int v = lane; v <= vectors; v += 32)",
    ),
    Mutant(
        "the ragged tail of D_in forgotten",
        "rows.cu",
        "min(slice, in_features - begin) / PER_VECTOR",
        "slice / PER_VECTOR",
    ),
    Mutant(
        "rank rows past the rank are read",
        "rows.cu",
        "const i64 row = first + min(r, here - 1);",
        "const i64 row = first + r;",
    ),
    Mutant(
        "rank rows of B past the rank are read",
        "rows.cu",
        "const i64 r = min(r0 + k * WARPS, rank - 1);",
        "const i64 r = r0 + k * WARPS;",
    ),
    Mutant("sums past the rank are written", "rows.cu", "if (lane < here) s[place", "if (lane < RANKS) s[place"),
    Mutant(
        "a shuffle round missing",
        "rows.cu",
        "for (int mask = 16; mask; mask /= 2)",
        "for (int mask = 8; mask; mask /= 2)",
    ),
    Mutant(
        "a lane leaves before the shuffle",
        "rows.cu",
        "  if (here <= 0) return;",
        "  if (here <= 0 || (lane == 31 && warp == 0)) return;",
    ),
    Mutant(
        "every block takes slot 0",
        "rows.cu",
        "starts[segment + 1] - entry), slots[segment]}",
        "starts[segment + 1] - entry), 0}",
    ),
    Mutant("the scale forgotten", "rows.cu", "weights[first + t] * scale *", "weights[first + t] *"),
    Mutant("the weight forgotten", "rows.cu", "staged[i] = weights[first + t] * scale", "staged[i] = scale"),
    Mutant(
        "slices overwrite one another",
        "rows.cu",
        "((i64)blockIdx.z * num_entries + unit.first + t) * s_width",
        "((i64)unit.first + t) * s_width",
    ),
    Mutant(
        "slices added without order",
        "rows.cu",
        "if (lane < here) s[place + lane] = mine;",
        "if (lane < here) s[place % ((i64)num_entries * s_width) + lane] += mine;",
    ),
    Mutant("only the first slice is summed", "site.cuh", "z < num_slices; z++) sum", "z < 1; z++) sum"),
    Mutant(
        "a part's ranks begin with the site's",
        "rows.cu",
        "rank_before(ranks, unit.slot, num_parts, tile.part), rank,",
        "0, rank,",
    ),
    Mutant(
        "every entry begins a unit", "rows.cu", "  if ((entry - starts[segment]) % ROWS) return {entry, 0, 0};\n", ""
    ),
    Mutant(
        "a unit runs into the next segment",
        "rows.cu",
        "min(ROWS, starts[segment + 1] - entry)",
        "min(ROWS, (int)gridDim.x - entry)",
    ),
    Mutant(
        "columns past the part",
        "rows.cu",
        "const bool is_inside = tile.local + column < tile.width;\n  Sums<ROWS>",
        "const bool is_inside = true;\n  Sums<ROWS>",
    ),
    Mutant(
        "tiles of the second part begin at the first's",
        "site.cuh",
        "part == 0 ? 0 : ends[part - 1], width = ends[part] - begin",
        "0, width = ends[part] - (part == 0 ? 0 : ends[part - 1])",
    ),
    Mutant(
        "rows of staged factors overlap",
        "rows.cu",
        "const float factor = staged[t * rank + r];",
        "const float factor = staged[t * (rank - 1) + r];",
    ),
    Mutant("halves of a vector swapped", "rows.cu", "total[4 * half] += four.x;", "total[4 - 4 * half] += four.x;"),
    Mutant("all warps sum in one place", "rows.cu", "partial[warp][t][0][lane] =", "partial[0][t][0][lane] ="),
    Mutant("a warp's sum left out", "rows.cu", "for (int w = 0; w < WARPS; w++)", "for (int w = 1; w < WARPS; w++)"),
    Mutant(
        "every warp writes the unit's first row",
        "rows.cu",
        "rows[unit.first + min(warp, unit.count - 1)]",
        "rows[unit.first]",
    ),
    Mutant(
        "A begins one element late",
        "rows.cu",
        "arena + a_start[unit.slot] + row",
        "arena + a_start[unit.slot] + 1 + row",
    ),
    Mutant(
        "elements of a word swapped",
        "element.cuh",
        "__uint_as_float(word << 16), __uint_as_float(word & 0xffff0000u)",
        "__uint_as_float(word & 0xffff0000u), __uint_as_float(word << 16)",
    ),
    Mutant(
        "cut off instead of rounded",
        "element.cuh",
        'asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(second), "f"(first));',
        "word = __float_as_uint(first) >> 16 | (__float_as_uint(second) & 0xffff0000u);",
    ),
    Mutant("y replaced instead of added to", "element.cuh", "sum[i] += values[i];", "sum[i] = values[i];"),
    Mutant(
        "a composed row's first entry only",
        "rows.cu",
        "for (int i = begin; i < end; i++) {\n    const int entry",
        "for (int i = begin; i < begin + 1; i++) {\n    const int entry",
    ),
    Mutant("untouched composed parts are written", "rows.cu", "  if (!is_touched) return;\n", ""),
    Mutant("a composed entry's own row ignored", "rows.cu", "rows[by_row[begin]], y_stride", "rows[begin], y_stride"),
    Mutant(
        "less shared memory asked for than used",
        "rows.cu",
        "staged_features[t * (slice / PER_VECTOR) + v] =",
        "staged_features[(t + 4) * (slice / PER_VECTOR) + v] =",
    ),
]

TILES = [
    Mutant("copies not waited for", "tiles.cu", "wait_copies<STAGES - 2>()", "wait_copies<STAGES - 1>()"),
    Mutant(
        "no barrier after the copies",
        "tiles.cu",
        "    __syncthreads();  // everyone's copies",
        "    // everyone's copies",
    ),
    Mutant(
        "a stage's copies in no group",
        "tiles.cu",
        "load(stage + STAGES - 1);\n    commit_copies();",
        "load(stage + STAGES - 1);",
    ),
    Mutant(
        "rows past the unit not zeroed",
        "tiles.cu",
        "from[j] = m < unit.count ? rows[unit.first + m] * x_stride : -1;",
        "from[j] = rows[unit.first + m] * x_stride;",
    ),
    Mutant(
        "ranks past the rank not zeroed",
        "tiles.cu",
        "const bool is_valid = rank0 + r < rank && k < end;",
        "const bool is_valid = k < end;",
    ),
    Mutant(
        "features past D_in not zeroed",
        "tiles.cu",
        "const bool is_valid = from[j] >= 0 && k < end;",
        "const bool is_valid = from[j] >= 0;",
    ),
    Mutant("the stage in use is overwritten", "tiles.cu", "slot = stage % STAGES;", "slot = stage % (STAGES - 1);"),
    Mutant(
        "a stage too few multiplied",
        "tiles.cu",
        "for (int stage = 0; stage < stages; stage++) {",
        "for (int stage = 0; stage < stages - 1; stage++) {",
    ),
    Mutant(
        "column halves of x swapped",
        "tiles.cu",
        "(warp * 16 + lane % 16) * STRIDE + lane / 16 * 8]",
        "(warp * 16 + lane % 16) * STRIDE + (1 - lane / 16) * 8]",
    ),
    Mutant(
        "matrices of A in another order",
        "tiles.cu",
        "multiply(c[2 * n], x_matrices, a_matrices[0], a_matrices[1]);",
        "multiply(c[2 * n], x_matrices, a_matrices[0], a_matrices[2]);",
    ),
    Mutant(
        "sums of rows 8 to 15 misplaced",
        "tiles.cu",
        "make_float2(c[n][2 * half], c[n][2 * half + 1]);\n        } else",
        "make_float2(c[n][2 - 2 * half], c[n][3 - 2 * half]);\n        } else",
    ),
    Mutant(
        "a window's unit done twice", "tiles.cu", "  if (u >= windows && first % ROWS == 0) return {0, 0, 0};", "  "
    ),
    Mutant(
        "a unit runs past its window",
        "tiles.cu",
        "const int end = min(starts[span + 1], (first / ROWS + 1) * ROWS);",
        "const int end = min(starts[span + 1], first + ROWS);",
    ),
    Mutant(
        "a unit runs into the next segment",
        "tiles.cu",
        "const int end = min(starts[span + 1], (first / ROWS + 1) * ROWS);",
        "const int end = min(num_places, (first / ROWS + 1) * ROWS);",
    ),
    Mutant("rows past the unit stored", "tiles.cu", "if (m < unit.count && r < rank) {", "if (r < rank) {"),
    Mutant("an odd rank's partner stored", "tiles.cu", "if (r + 1 < rank) {", "if (r < rank) {"),
    Mutant("slices overwrite one another", "tiles.cu", "(i64)blockIdx.z * num_entries + unit.first;", "unit.first;"),
    Mutant(
        "s rounded to an element",
        "tiles.cu",
        "            multiply(c[2 * n + half], low, b_matrices[2 * half], b_matrices[2 * half + 1]);\n",
        "",
    ),
    Mutant("s counted twice", "tiles.cu", "pack(pair[0] - kept.x, pair[1] - kept.y)", "pack(pair[0], pair[1])"),
    Mutant("B not transposed", "tiles.cu", "load_matrices_transposed(b_matrices", "load_matrices(b_matrices"),
    Mutant("one buffer for both chunks", "tiles.cu", "weights[chunk % 2][r * B_STRIDE", "weights[0][r * B_STRIDE"),
    Mutant("no barrier before the next chunk", "tiles.cu", "    if (chunk > 0) __syncthreads();", "    "),
    Mutant(
        "no barrier after staging a chunk",
        "tiles.cu",
        "    __syncthreads();\n    if (warp * 16 >= unit.count) continue;",
        "    if (warp * 16 >= unit.count) continue;",
    ),
    Mutant(
        "sums overwrite operands in use",
        "tiles.cu",
        "  __syncthreads();  // the operands are done with",
        "  // the operands are done with",
    ),
    Mutant(
        "no barrier before the sums are read",
        "tiles.cu",
        "  __syncthreads();\n  if (tile.local + column >= tile.width) return;",
        "  if (tile.local + column >= tile.width) return;",
    ),
    Mutant(
        "the next chunk's copies taken for this one's", "tiles.cu", "      wait_copies<1>();", "      wait_copies<2>();"
    ),
    Mutant(
        "the weight forgotten",
        "tiles.cu",
        "return entry_weights[unit.first + m] * share.scale *",
        "return share.scale *",
    ),
    Mutant(
        "the scale of the first part",
        "tiles.cu",
        "scales[place], arena",
        "scales[(i64)slot * num_parts], arena",
    ),
    Mutant(
        "ranks of the parts before forgotten",
        "tiles.cu",
        "const i64 place = (i64)(unit.first + m) * s_width + share.before + r;",
        "const i64 place = (i64)(unit.first + m) * s_width + r;",
    ),
    Mutant(
        "ranks past the part's not zeroed",
        "tiles.cu",
        "const bool is_valid = m < unit.count && chunk * RANKS + r + k < rank;",
        "const bool is_valid = m < unit.count;",
    ),
    Mutant("columns past the part", "tiles.cu", "  if (tile.local + column >= tile.width) return;\n#pragma", "#pragma"),
    Mutant("a generic address taken for a shared one", "ptx.cuh", "(u32)__cvta_generic_to_shared(p)", "(u32)(i64)p"),
    Mutant("the sums before not read", "ptx.cuh", ': "+f"(c[0]), "+f"(c[1])', ': "=f"(c[0]), "=f"(c[1])'),
    Mutant("8 bytes where 16 are meant", "ptx.cuh", "[%0], [%1], 16, %2;", "[%0], [%1], 8, %2;"),
    Mutant("registers of b swapped", "ptx.cuh", '"r"(b0), "r"(b1)', '"r"(b1), "r"(b0)'),
    Mutant(
        "matrices loaded without the warp's second half",
        "ptx.cuh",
        "m8n8.x4.shared.b16 {%0, %1, %2, %3}",
        "m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}",
    ),
]

AFFINE = [
    Mutant("rows taken in the order of entries", "affine.cu", "rows[by_row[begin]] * y_stride", "begin * y_stride"),
    Mutant(
        "the last entry only", "affine.cu", "for (int i = begin; i < end; i++)", "for (int i = end - 1; i < end; i++)"
    ),
    Mutant("the shift read where the gain is", "affine.cu", "      from += tile.width;\n", ""),
    Mutant("the weight forgotten", "affine.cu", "const float weight = weights[entry];", "const float weight = 1.f;"),
    Mutant("vectors of the first part", "affine.cu", "num_parts + tile.part;", "num_parts;"),
    Mutant("columns past the part", "affine.cu", "if (tile.local + column >= tile.width) return;", ""),
    Mutant("parts without vectors written", "affine.cu", "if (is_loaded) *place = now;", "*place = now;"),
    Mutant("an entry takes y as it was", "affine.cu", "if (!is_loaded) now = *place;", "now = *place;"),
]

LOOKUP = [
    Mutant("the token of the entry, not of its row", "lookup.cu", "token_ids[rows[entry]]", "token_ids[entry]"),
    Mutant(
        "ranks past the rank written",
        "lookup.cu",
        "if (r >= rank_before(ranks, slot, num_parts, num_parts)) return;",
        "",
    ),
    Mutant("A taken as its transpose", "lookup.cu", "(i64)r * in_features + token_ids", "r + token_ids"),
    Mutant("every block writes the first entry", "lookup.cu", "s[(i64)entry * s_width + r]", "s[r]"),
    Mutant("the wrong half of a word", "lookup.cu", "arena[place]).x", "arena[place]).y"),
]

CACHE = [
    Mutant("padding written", "cache.cu", "  if (place < 0) return;\n", ""),
    Mutant(
        "keys and values swapped",
        "cache.cu",
        "blockIdx.y == 0 ? k_cache : v_cache",
        "blockIdx.y == 1 ? k_cache : v_cache",
    ),
    Mutant("rows taken as dense", "cache.cu", "v + blockIdx.x * v_stride", "v + blockIdx.x * vectors"),
    Mutant("one vector too many", "cache.cu", "i < vectors; i += blockDim.x", "i <= vectors; i += blockDim.x"),
    Mutant(
        "places of 32 bits too narrow",
        "cache.cu",
        "const i64 place = index[blockIdx.x];",
        "const i64 place = (signed char)index[blockIdx.x];",
    ),
]

FAR = [
    (Family.ROWS, Mutant("A's offset", "rows.cu", "arena + a_start[unit.slot]", "arena + (int)a_start[unit.slot]")),
    (
        Family.ROWS,
        Mutant(
            "B's offset",
            "rows.cu",
            "unit.count, rank, arena + b_start[place]",
            "unit.count, rank, arena + (int)b_start[place]",
        ),
    ),
    (Family.TILES, Mutant("A's offset", "tiles.cu", "arena + a_start[unit.slot]", "arena + (int)a_start[unit.slot]")),
    (Family.TILES, Mutant("B's offset", "tiles.cu", "arena + b_start[place]", "arena + (int)b_start[place]")),
]
