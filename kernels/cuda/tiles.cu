// LoRA for many rows per adapter, as in prefill: products of tiles by the tensor cores, weights read once per 64 rows.
//
// A block's unit is up to 64 entries of one segment. Cut the entries at every multiple of 64 and at every segment's
// start: unit u < windows begins at entry 64 * u, unit windows + i at segment i's start, unless that is such a multiple.
// So windows + S blocks cover every batch, each knows its unit without a table, and none has two slots. Where rows have
// several entries, expand cuts rows the same way, at the starts of the groups whose rows have the same slots.
//
// Bytes that must move, for a segment of n entries (2 bytes per element, 4 per partial sum):
//   shrink   n / 64 * R * D_in * 2 (A)  +  n * R / 32 * D_in * 2 (x)  +  slices * n * R * 4 (s)
//   expand   n / 64 * R * D_out * 2 (B) +  2 * n * D_out * 2 (y)      +  D_out / 64 * slices * n * R * 4 (s, from L2)
// with every quotient rounded up; by groups of rows B and s once for each of a group's slots, and y once.
#include "ptx.cuh"
#include "site.cuh"

constexpr int ROWS = 64;    // entries of a unit, 16 for each of four warps
constexpr int THREADS = 128;
constexpr int RANKS = 32;   // rank rows of a block in shrink and of a chunk in expand
constexpr int DEPTH = 64;   // features of a stage in shrink
constexpr int STAGES = 3;   // two under way while one is multiplied
constexpr int TILE = 64;    // columns of a block in expand
constexpr int PAD = 8;      // elements, so that the eight rows of a matrix lie in different banks
constexpr u32 ALL_LANES = 0xffffffffu;

// Up to 64 places of one span: entries of a segment, or rows of a group.
struct Window {
  int first;
  int count;  // 0 if this block has nothing to do
  int span;
};

__device__ __forceinline__ Window find_window(const int* __restrict__ starts, const int* __restrict__ span_of,
                                              int num_places) {
  const int windows = (num_places + ROWS - 1) / ROWS, u = blockIdx.x;
  const int span = u < windows ? span_of[u * ROWS] : u - windows;
  if (span < 0) return {0, 0, 0};  // padding of a captured batch
  const int first = u < windows ? u * ROWS : starts[span];
  if (u >= windows && first % ROWS == 0) return {0, 0, 0};  // the window's block does it
  const int end = min(starts[span + 1], (first / ROWS + 1) * ROWS);
  return {first, end - first, span};
}

// s[z, m, r] = sum over the z-th slice of D_in of x[rows[m]] * A[r]. Grid (windows + S, max_rank / 32, slices).
// slice is a multiple of 64, in_features of 8.
extern "C" __global__ void __launch_bounds__(THREADS)
    shrink_tiles(const u16* __restrict__ x, i64 x_stride, const u16* __restrict__ arena,
                 const i64* __restrict__ a_start, const int* __restrict__ ranks, int num_parts,
                 const int* __restrict__ rows, const int* __restrict__ starts, const int* __restrict__ slots,
                 const int* __restrict__ segment_of, float* __restrict__ s, int num_entries, int s_width,
                 int in_features, int slice) {
  constexpr int STRIDE = DEPTH + PAD, VECTORS = DEPTH / PER_VECTOR, AT_ONCE = THREADS / VECTORS;
  __shared__ __align__(16) u16 features[STAGES][ROWS * STRIDE];
  __shared__ __align__(16) u16 weights[STAGES][RANKS * STRIDE];
  const Window window = find_window(starts, segment_of, num_entries);
  if (window.count == 0) return;
  const Unit unit = {window.first, window.count, slots[window.span]};
  const int rank = rank_before(ranks, unit.slot, num_parts, num_parts), rank0 = blockIdx.y * RANKS;
  if (rank0 >= rank) return;

  const int begin = blockIdx.z * slice, end = min(in_features, begin + slice);
  const int stages = (end - begin + DEPTH - 1) / DEPTH;
  const int row = threadIdx.x / VECTORS, column = threadIdx.x % VECTORS * PER_VECTOR;
  const u16* a = arena + a_start[unit.slot] + (i64)rank0 * in_features;
  i64 from[ROWS / AT_ONCE];  // where this thread's rows of x begin
#pragma unroll
  for (int j = 0; j < ROWS / AT_ONCE; j++) {
    const int m = row + j * AT_ONCE;
    from[j] = m < unit.count ? rows[unit.first + m] * x_stride : -1;
  }
  auto load = [&](int stage) {
    const int k = begin + stage * DEPTH + column, slot = stage % STAGES;
#pragma unroll
    for (int j = 0; j < ROWS / AT_ONCE; j++) {
      const bool is_valid = from[j] >= 0 && k < end;
      copy_async(&features[slot][(row + j * AT_ONCE) * STRIDE + column], is_valid ? x + from[j] + k : x, is_valid);
    }
#pragma unroll
    for (int j = 0; j < RANKS / AT_ONCE; j++) {
      const int r = row + j * AT_ONCE;
      const bool is_valid = rank0 + r < rank && k < end;
      copy_async(&weights[slot][r * STRIDE + column], is_valid ? a + (i64)r * in_features + k : a, is_valid);
    }
  };
#pragma unroll
  for (int stage = 0; stage < STAGES - 1; stage++) {
    if (stage < stages) load(stage);
    commit_copies();
  }

  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  float c[RANKS / 8][4] = {};
  for (int stage = 0; stage < stages; stage++) {
    wait_copies<STAGES - 2>();
    __syncthreads();  // everyone's copies have arrived, and the stage about to be overwritten has been multiplied
    if (stage + STAGES - 1 < stages) load(stage + STAGES - 1);
    commit_copies();
    if (warp * 16 >= unit.count) continue;  // no rows for this warp
    const u16* x_stage = &features[stage % STAGES][(warp * 16 + lane % 16) * STRIDE + lane / 16 * 8];
    const u16* a_stage = &weights[stage % STAGES][(lane / 16 * 8 + lane % 8) * STRIDE + lane / 8 % 2 * 8];
#pragma unroll
    for (int k = 0; k < DEPTH; k += 16) {
      u32 x_matrices[4];
      load_matrices(x_matrices, x_stage + k);
#pragma unroll
      for (int n = 0; n < RANKS / 16; n++) {
        if (rank0 + n * 16 < rank) {
          u32 a_matrices[4];
          load_matrices(a_matrices, a_stage + n * 16 * STRIDE + k);
          multiply(c[2 * n], x_matrices, a_matrices[0], a_matrices[1]);
          multiply(c[2 * n + 1], x_matrices, a_matrices[2], a_matrices[3]);
        }
      }
    }
  }

  const i64 slice_place = (i64)blockIdx.z * num_entries + unit.first;
#pragma unroll
  for (int n = 0; n < RANKS / 8; n++) {
    const int r = rank0 + n * 8 + lane % 4 * 2;
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const int m = warp * 16 + half * 8 + lane / 4;
      if (m < unit.count && r < rank) {  // s_width is even, so pairs are aligned; an odd rank's last has no partner
        float* place = s + (slice_place + m) * s_width + r;
        if (r + 1 < rank) {
          *reinterpret_cast<float2*>(place) = make_float2(c[n][2 * half], c[n][2 * half + 1]);
        } else {
          *place = c[n][2 * half];
        }
      }
    }
  }
}

// The shared memory of expand_tiles: the operands of one chunk of ranks, and afterwards the sums.
union ExpandMemory {
  struct {
    u16 high[ROWS * (RANKS + PAD)];  // s rounded to an element
    u16 low[ROWS * (RANKS + PAD)];   // and what that lost
    u16 weights[2][RANKS * (TILE + PAD)];
  } in;
  float out[ROWS * (TILE + 4)];  // 4: rows begin in different banks and at 16 bytes
};

// c += the chunk's values * its rows of B on the CUDA cores: slow, and needed only past float16's range.
template <typename Value>
__device__ __forceinline__ void add_exactly(float (&c)[TILE / 8][4], const u16* weights, int ranks, Value value) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
#pragma unroll 1
  for (int r = 0; r < ranks; r++) {
    const float low = value(warp * 16 + lane / 4, r), high = value(warp * 16 + 8 + lane / 4, r);
#pragma unroll
    for (int n = 0; n < TILE / 8; n++) {
      const u32 word = *reinterpret_cast<const u32*>(&weights[r * (TILE + PAD) + n * 8 + lane % 4 * 2]);
      const float2 pair = unpack(word);
      c[n][0] = fmaf(low, pair.x, c[n][0]);
      c[n][1] = fmaf(low, pair.y, c[n][1]);
      c[n][2] = fmaf(high, pair.x, c[n][2]);
      c[n][3] = fmaf(high, pair.y, c[n][3]);
    }
  }
}

// What is added to a tile of columns for the entries of one slot.
struct Share {
  int rank;
  int before;  // ranks of the parts before
  float scale;
  const u16* b;
};

__device__ __forceinline__ Share find_share(const u16* __restrict__ arena, const i64* __restrict__ b_start,
                                            const int* __restrict__ ranks, const float* __restrict__ scales,
                                            int num_parts, int slot, int part) {
  const i64 place = (i64)slot * num_parts + part;
  return {ranks[place], rank_before(ranks, slot, num_parts, part), scales[place], arena + b_start[place]};
}

// c += weights[m] * scale * s[m, part] * B over a unit's entries. All threads of the block call it.
// s goes in as the sum of two elements: it keeps 16 of its bits in bfloat16, and in float16 22 or all above 2^-25. A
// warp whose values are past float16's range multiplies them as they are.
__device__ __forceinline__ void accumulate(float (&c)[TILE / 8][4], ExpandMemory& shared, const Unit& unit,
                                           const Share& share, const Columns& tile, const float* __restrict__ s,
                                           const float* __restrict__ entry_weights, int num_entries, int s_width,
                                           int num_slices) {
  constexpr int S_STRIDE = RANKS + PAD, B_STRIDE = TILE + PAD;
  constexpr int VECTORS = TILE / PER_VECTOR, AT_ONCE = THREADS / VECTORS;
  const int rank = share.rank;
  const int row = threadIdx.x / VECTORS, column = threadIdx.x % VECTORS * PER_VECTOR;
  const bool is_inside = tile.local + column < tile.width;
  auto load = [&](int chunk) {
#pragma unroll
    for (int j = 0; j < RANKS / AT_ONCE; j++) {
      const int r = row + j * AT_ONCE, from = chunk * RANKS + r;
      const bool is_valid = from < rank && is_inside;
      copy_async(&shared.in.weights[chunk % 2][r * B_STRIDE + column],
                 is_valid ? share.b + (i64)from * tile.width + tile.local + column : share.b, is_valid);
    }
    commit_copies();
  };
  load(0);

  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, chunks = (rank + RANKS - 1) / RANKS;
  auto shrunk = [&](int m, int r) {
    const i64 place = (i64)(unit.first + m) * s_width + share.before + r;
    return entry_weights[unit.first + m] * share.scale * sum_slices(s, place, (i64)num_entries * s_width, num_slices);
  };
  for (int chunk = 0; chunk < chunks; chunk++) {
    if (chunk > 0) __syncthreads();  // the chunk before has been multiplied
    if (chunk + 1 < chunks) load(chunk + 1);
    bool is_split = true;  // whether two elements can stand for each of this thread's values
#pragma unroll 4  // eight loads under way, at what the sums leave of the registers
    for (int i = lane; i < 16 * RANKS / 2; i += 32) {  // a warp's own 16 rows
      const int m = warp * 16 + i / (RANKS / 2), r = i % (RANKS / 2) * 2;
      float pair[2];
#pragma unroll
      for (int k = 0; k < 2; k++) {
        const bool is_valid = m < unit.count && chunk * RANKS + r + k < rank;
        pair[k] = is_valid ? shrunk(m, chunk * RANKS + r + k) : 0.f;
        is_split = is_split && is_in_range(pair[k]);
      }
      const u32 high = pack(pair[0], pair[1]);
      const float2 kept = unpack(high);
      *reinterpret_cast<u32*>(&shared.in.high[m * S_STRIDE + r]) = high;
      *reinterpret_cast<u32*>(&shared.in.low[m * S_STRIDE + r]) = pack(pair[0] - kept.x, pair[1] - kept.y);
    }
    if (chunk + 1 < chunks) {
      wait_copies<1>();
    } else {
      wait_copies<0>();
    }
    __syncthreads();
    if (warp * 16 >= unit.count) continue;  // no rows for this warp
    if (!__all_sync(ALL_LANES, is_split)) {
      add_exactly(c, shared.in.weights[chunk % 2], min(RANKS, rank - chunk * RANKS), [&](int m, int r) {
        return m < unit.count ? shrunk(m, chunk * RANKS + r) : 0.f;
      });
      continue;
    }
    const int s_place = (warp * 16 + lane % 16) * S_STRIDE + lane / 16 * 8;
    const u16* b_stage = &shared.in.weights[chunk % 2][(lane / 8 % 2 * 8 + lane % 8) * B_STRIDE + lane / 16 * 8];
#pragma unroll
    for (int k = 0; k < RANKS; k += 16) {
      if (chunk * RANKS + k < rank) {
        u32 high[4], low[4];
        load_matrices(high, &shared.in.high[s_place + k]);
        load_matrices(low, &shared.in.low[s_place + k]);
#pragma unroll
        for (int n = 0; n < TILE / 16; n++) {
          u32 b_matrices[4];
          load_matrices_transposed(b_matrices, b_stage + k * B_STRIDE + n * 16);
#pragma unroll
          for (int half = 0; half < 2; half++) {
            multiply(c[2 * n + half], low, b_matrices[2 * half], b_matrices[2 * half + 1]);
            multiply(c[2 * n + half], high, b_matrices[2 * half], b_matrices[2 * half + 1]);
          }
        }
      }
    }
  }
}

// y[rows[m]] += the sums, for the unit's rows. All threads of the block call it.
__device__ __forceinline__ void write_sums(const float (&c)[TILE / 8][4], ExpandMemory& shared, const int* rows,
                                           int count, const Columns& tile, u16* __restrict__ y, i64 y_stride) {
  constexpr int OUT_STRIDE = TILE + 4, VECTORS = TILE / PER_VECTOR, AT_ONCE = THREADS / VECTORS;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int row = threadIdx.x / VECTORS, column = threadIdx.x % VECTORS * PER_VECTOR;
  __syncthreads();  // the operands are done with; their memory takes the sums
#pragma unroll
  for (int n = 0; n < TILE / 8; n++) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const int m = warp * 16 + half * 8 + lane / 4;
      *reinterpret_cast<float2*>(&shared.out[m * OUT_STRIDE + n * 8 + lane % 4 * 2]) =
          make_float2(c[n][2 * half], c[n][2 * half + 1]);
    }
  }
  __syncthreads();
  if (tile.local + column >= tile.width) return;
#pragma unroll
  for (int j = 0; j < ROWS / AT_ONCE; j++) {
    const int m = row + j * AT_ONCE;
    if (m < count) {
      const float4 low = *reinterpret_cast<const float4*>(&shared.out[m * OUT_STRIDE + column]);
      const float4 high = *reinterpret_cast<const float4*>(&shared.out[m * OUT_STRIDE + column + 4]);
      const float sum[PER_VECTOR] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
      add_in_place(y + rows[m] * y_stride + tile.begin + column, sum);
    }
  }
}

// y[rows[m], part p] += weights[m] * scales[slot, p] * s[m, part p] * B_p, for batches where no row has two entries.
// Grid (windows + S, tiles of 64 columns over all parts).
extern "C" __global__ void __launch_bounds__(THREADS, 6)
    expand_tiles(const float* __restrict__ s, const u16* __restrict__ arena, const i64* __restrict__ b_start,
                 const int* __restrict__ ranks, const float* __restrict__ scales, int num_parts, int end0, int end1,
                 int end2, const int* __restrict__ rows, const float* __restrict__ weights,
                 const int* __restrict__ starts, const int* __restrict__ slots, const int* __restrict__ segment_of,
                 u16* __restrict__ y, i64 y_stride, int num_entries, int s_width, int num_slices) {
  __shared__ __align__(16) ExpandMemory shared;
  const Window window = find_window(starts, segment_of, num_entries);
  if (window.count == 0) return;
  const Columns tile = find_columns(blockIdx.y, TILE, end0, end1, end2);
  const Unit unit = {window.first, window.count, slots[window.span]};
  const Share share = find_share(arena, b_start, ranks, scales, num_parts, unit.slot, tile.part);
  if (share.rank == 0) return;
  float c[TILE / 8][4] = {};
  accumulate(c, shared, unit, share, tile, s, weights, num_entries, s_width, num_slices);
  write_sums(c, shared, rows + unit.first, unit.count, tile, y, y_stride);
}

// The same where rows may have several entries, and rounded once. The U rows with an entry are sorted into groups: those
// of group g lie at group_starts[g] in group_rows and have the same slots. Their entries lie one after the other in each
// of these segments, from first_entries[member_starts[g]] and so on. Grid (windows of U + groups, tiles of 64 columns).
extern "C" __global__ void __launch_bounds__(THREADS, 5)
    expand_groups(const float* __restrict__ s, const u16* __restrict__ arena, const i64* __restrict__ b_start,
                  const int* __restrict__ ranks, const float* __restrict__ scales, int num_parts, int end0, int end1,
                  int end2, const float* __restrict__ weights, const int* __restrict__ slots,
                  const int* __restrict__ segment_of, const int* __restrict__ group_rows,
                  const int* __restrict__ group_starts, const int* __restrict__ group_of,
                  const int* __restrict__ member_starts, const int* __restrict__ first_entries, u16* __restrict__ y,
                  i64 y_stride, int num_rows, int num_entries, int s_width, int num_slices) {
  __shared__ __align__(16) ExpandMemory shared;
  const Window window = find_window(group_starts, group_of, num_rows);
  if (window.count == 0) return;
  const Columns tile = find_columns(blockIdx.y, TILE, end0, end1, end2);
  float c[TILE / 8][4] = {};
  bool is_touched = false;  // untouched rows keep every bit: even adding zero would turn -0 into 0
  for (int i = member_starts[window.span]; i < member_starts[window.span + 1]; i++) {
    const int slot = slots[segment_of[first_entries[i]]];
    const Unit unit = {first_entries[i] + window.first - group_starts[window.span], window.count, slot};
    const Share share = find_share(arena, b_start, ranks, scales, num_parts, slot, tile.part);
    if (share.rank == 0) continue;
    if (is_touched) __syncthreads();  // the entries before have been multiplied
    accumulate(c, shared, unit, share, tile, s, weights, num_entries, s_width, num_slices);
    is_touched = true;
  }
  if (!is_touched) return;
  write_sums(c, shared, group_rows + window.first, window.count, tile, y, y_stride);
}
