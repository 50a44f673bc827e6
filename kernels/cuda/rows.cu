// LoRA for few rows per adapter, as in decode: a stream of weights through the CUDA cores, no tensor cores.
//
// A block's unit is up to ROWS entries of one segment, which share its loads; the block of an entry that is not the
// first of its unit leaves at once, so a grid of M blocks needs no table of units and fits every batch of M entries.
//
// Bytes that must move, for units of one entry (2 bytes per element, 4 per partial sum):
//   shrink   R * D_in * 2  (A)  +  D_in * 2  (x)  +  slices * R * 4  (s)
//   expand   R * D_out * 2 (B)  +  2 * D_out * 2  (y, read and written)  +  slices * R * 4  (s)
// A and B are read once per unit, whole sectors at a time; x once per 16 rank rows, s once per tile of columns.
#include "ptx.cuh"
#include "site.cuh"

constexpr int ROWS = 4;
constexpr int WARPS = 4;
constexpr int RANKS = 4;               // rank rows of a warp in shrink: as many loads in flight
constexpr int TILE = 32 * PER_VECTOR;  // columns of a block in expand: 16 bytes for each lane
constexpr u32 ALL_LANES = 0xffffffffu;

__device__ __forceinline__ Unit find_unit(const int* __restrict__ starts, const int* __restrict__ slots,
                                          const int* __restrict__ segment_of) {
  const int entry = blockIdx.x, segment = segment_of[entry];
  if (segment < 0) return {entry, 0, 0};  // padding of a captured batch
  if ((entry - starts[segment]) % ROWS) return {entry, 0, 0};
  return {entry, min(ROWS, starts[segment + 1] - entry), slots[segment]};
}

__device__ __forceinline__ float dot(const float (&a)[PER_VECTOR], const float (&b)[PER_VECTOR], float sum) {
#pragma unroll
  for (int i = 0; i < PER_VECTOR; i++) sum = fmaf(a[i], b[i], sum);
  return sum;
}

// s[z, m, r] = sum over the z-th slice of D_in of x[rows[m]] * A[r]. Grid (M, max_rank / 16, slices), 128 threads,
// ROWS * slice * 2 bytes of shared memory. slice and in_features are multiples of 8.
extern "C" __global__ void __launch_bounds__(WARPS * 32, 6)
    shrink_rows(const u16* __restrict__ x, i64 x_stride, const u16* __restrict__ arena,
                const i64* __restrict__ a_start, const int* __restrict__ ranks, int num_parts,
                const int* __restrict__ rows, const int* __restrict__ starts, const int* __restrict__ slots,
                const int* __restrict__ segment_of, float* __restrict__ s, int num_entries, int s_width,
                int in_features, int slice) {
  extern __shared__ uint4 staged_features[];  // [ROWS][slice / 8]
  const Unit unit = find_unit(starts, slots, segment_of);
  if (unit.count == 0) return;
  const int rank = rank_before(ranks, unit.slot, num_parts, num_parts);
  if ((int)blockIdx.y * WARPS * RANKS >= rank) return;

  const int begin = blockIdx.z * slice, vectors = min(slice, in_features - begin) / PER_VECTOR;
  for (int t = 0; t < unit.count; t++) {
    const uint4* from = reinterpret_cast<const uint4*>(x + rows[unit.first + t] * x_stride + begin);
    for (int v = threadIdx.x; v < vectors; v += blockDim.x) staged_features[t * (slice / PER_VECTOR) + v] = from[v];
  }
  __syncthreads();

  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int first = (blockIdx.y * WARPS + warp) * RANKS, here = min(RANKS, rank - first);
  if (here <= 0) return;  // a whole warp
  const uint4* rank_row[RANKS];
#pragma unroll
  for (int r = 0; r < RANKS; r++) {
    const i64 row = first + min(r, here - 1);  // the last one again, rather than past the rank
    rank_row[r] = reinterpret_cast<const uint4*>(arena + a_start[unit.slot] + row * in_features + begin);
  }

  float sums[ROWS][RANKS] = {};
  for (int v = lane; v < vectors; v += 32) {
    uint4 weights[RANKS];
#pragma unroll
    for (int r = 0; r < RANKS; r++) weights[r] = load_once(rank_row[r] + v);
    float a[RANKS][PER_VECTOR];
#pragma unroll
    for (int r = 0; r < RANKS; r++) unpack(weights[r], a[r]);
#pragma unroll
    for (int t = 0; t < ROWS; t++) {
      if (t < unit.count) {
        float features[PER_VECTOR];
        unpack(staged_features[t * (slice / PER_VECTOR) + v], features);
#pragma unroll
        for (int r = 0; r < RANKS; r++) sums[t][r] = dot(a[r], features, sums[t][r]);
      }
    }
  }

#pragma unroll
  for (int t = 0; t < ROWS; t++) {
    if (t < unit.count) {
      float mine = 0.f;
#pragma unroll
      for (int r = 0; r < RANKS; r++) {
        float sum = sums[t][r];
#pragma unroll
        for (int mask = 16; mask; mask /= 2) sum += __shfl_xor_sync(ALL_LANES, sum, mask);
        if (lane == r) mine = sum;
      }
      const i64 place = ((i64)blockIdx.z * num_entries + unit.first + t) * s_width + first;
      if (lane < here) s[place + lane] = mine;
    }
  }
}

// What a block of expand adds: up to COUNT entries of one slot at one tile of columns.
template <int COUNT>
struct Sums {
  float of[COUNT][PER_VECTOR];
};

// staged[t, r] = weights[m] * scale * s[m, part's r]. All threads of the block call it and meet afterwards.
__device__ __forceinline__ void stage(float* staged, const float* __restrict__ s, int first, int count, int before,
                                      int rank, float scale, const float* __restrict__ weights, int num_entries,
                                      int s_width, int num_slices) {
  for (int i = threadIdx.x; i < count * rank; i += blockDim.x) {
    const int t = i / rank, r = i % rank;
    const i64 place = (i64)(first + t) * s_width + before + r;
    staged[i] = weights[first + t] * scale * sum_slices(s, place, (i64)num_entries * s_width, num_slices);
  }
}

// Adds staged * B. A warp takes every WARPS-th rank row, four of them at once.
template <int COUNT>
__device__ __forceinline__ void accumulate(Sums<COUNT>& sums, const float* staged, int count, int rank,
                                           const u16* __restrict__ b, int width, bool is_inside) {
  const int warp = threadIdx.x / 32;
  if (!is_inside) return;
  for (int r0 = warp; r0 < rank; r0 += WARPS * RANKS) {
    uint4 vectors[RANKS];
#pragma unroll
    for (int k = 0; k < RANKS; k++) {
      const i64 r = min(r0 + k * WARPS, rank - 1);  // the last one again, rather than past the rank
      vectors[k] = load_once(reinterpret_cast<const uint4*>(b + r * width));
    }
#pragma unroll
    for (int k = 0; k < RANKS; k++) {
      const int r = r0 + k * WARPS;
      if (r < rank) {
        float weights[PER_VECTOR];
        unpack(vectors[k], weights);
#pragma unroll
        for (int t = 0; t < COUNT; t++) {
          if (t < count) {
            const float factor = staged[t * rank + r];
#pragma unroll
            for (int i = 0; i < PER_VECTOR; i++) sums.of[t][i] = fmaf(factor, weights[i], sums.of[t][i]);
          }
        }
      }
    }
  }
}

// Sums over the warps in their order; warp t writes row t of the unit. Lanes are spread so that banks never meet.
template <int COUNT>
__device__ __forceinline__ void finish(const Sums<COUNT>& sums, float4 (&partial)[WARPS][COUNT][2][32], int count,
                                       int row, i64 y_stride, int column, bool is_inside, u16* __restrict__ y) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
#pragma unroll
  for (int t = 0; t < COUNT; t++) {
    partial[warp][t][0][lane] = make_float4(sums.of[t][0], sums.of[t][1], sums.of[t][2], sums.of[t][3]);
    partial[warp][t][1][lane] = make_float4(sums.of[t][4], sums.of[t][5], sums.of[t][6], sums.of[t][7]);
  }
  __syncthreads();
  if (warp >= count || !is_inside) return;
  float total[PER_VECTOR] = {};
#pragma unroll
  for (int w = 0; w < WARPS; w++) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const float4 four = partial[w][warp][half][lane];
      total[4 * half] += four.x;
      total[4 * half + 1] += four.y;
      total[4 * half + 2] += four.z;
      total[4 * half + 3] += four.w;
    }
  }
  add_in_place(y + row * y_stride + column, total);
}

// y[rows[m], part p] += weights[m] * scales[slot, p] * s[m, part p] * B_p, for batches where no row has two entries.
// Grid (M, tiles of 256 columns over all parts), 128 threads, ROWS * s_width * 4 bytes of shared memory.
extern "C" __global__ void __launch_bounds__(WARPS * 32, 6)
    expand_rows(const float* __restrict__ s, const u16* __restrict__ arena, const i64* __restrict__ b_start,
                const int* __restrict__ ranks, const float* __restrict__ scales, int num_parts, int end0, int end1,
                int end2, const int* __restrict__ rows, const float* __restrict__ weights,
                const int* __restrict__ starts, const int* __restrict__ slots, const int* __restrict__ segment_of,
                u16* __restrict__ y, i64 y_stride, int num_entries, int s_width, int num_slices) {
  extern __shared__ float staged[];  // [ROWS][rank]
  __shared__ float4 partial[WARPS][ROWS][2][32];
  const Unit unit = find_unit(starts, slots, segment_of);
  if (unit.count == 0) return;
  const Columns tile = find_columns(blockIdx.y, TILE, end0, end1, end2);
  const i64 place = (i64)unit.slot * num_parts + tile.part;
  const int rank = ranks[place];
  if (rank == 0) return;

  stage(staged, s, unit.first, unit.count, rank_before(ranks, unit.slot, num_parts, tile.part), rank, scales[place],
        weights, num_entries, s_width, num_slices);
  __syncthreads();
  const int warp = threadIdx.x / 32, column = (threadIdx.x % 32) * PER_VECTOR;
  const bool is_inside = tile.local + column < tile.width;
  Sums<ROWS> sums = {};
  accumulate(sums, staged, unit.count, rank, arena + b_start[place] + tile.local + column, tile.width, is_inside);
  const int row = rows[unit.first + min(warp, unit.count - 1)];
  finish(sums, partial, unit.count, row, y_stride, tile.begin + column, is_inside, y);
}

// The same where rows may have several entries: a block takes one row and its entries in order, and rounds once.
// Grid (rows with an entry, tiles of 256 columns), 128 threads, s_width * 4 bytes of shared memory.
extern "C" __global__ void __launch_bounds__(WARPS * 32, 6)
    expand_composed(const float* __restrict__ s, const u16* __restrict__ arena, const i64* __restrict__ b_start,
                    const int* __restrict__ ranks, const float* __restrict__ scales, int num_parts, int end0,
                    int end1, int end2, const int* __restrict__ rows, const float* __restrict__ weights,
                    const int* __restrict__ slots, const int* __restrict__ segment_of,
                    const int* __restrict__ by_row, const int* __restrict__ row_starts, u16* __restrict__ y,
                    i64 y_stride, int num_entries, int s_width, int num_slices) {
  extern __shared__ float staged[];  // [rank]
  __shared__ float4 partial[WARPS][1][2][32];
  const int begin = row_starts[blockIdx.x], end = row_starts[blockIdx.x + 1];
  if (begin == end) return;  // padding of a captured batch
  const Columns tile = find_columns(blockIdx.y, TILE, end0, end1, end2);
  const int column = (threadIdx.x % 32) * PER_VECTOR;
  const bool is_inside = tile.local + column < tile.width;
  Sums<1> sums = {};
  bool is_touched = false;  // an untouched row keeps every bit: even adding zero would turn -0 into 0
  for (int i = begin; i < end; i++) {
    const int entry = by_row[i], slot = slots[segment_of[entry]];
    const i64 place = (i64)slot * num_parts + tile.part;
    const int rank = ranks[place];
    if (rank == 0) continue;
    if (is_touched) __syncthreads();  // the entry before may still be read
    stage(staged, s, entry, 1, rank_before(ranks, slot, num_parts, tile.part), rank, scales[place], weights,
          num_entries, s_width, num_slices);
    __syncthreads();
    accumulate(sums, staged, 1, rank, arena + b_start[place] + tile.local + column, tile.width, is_inside);
    is_touched = true;
  }
  if (!is_touched) return;
  finish(sums, partial, 1, rows[by_row[begin]], y_stride, tile.begin + column, is_inside, y);
}
