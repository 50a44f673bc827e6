// Gains and shifts of adapters that have them: DoRA's column norms, a bias on lora_B.
//
// A block takes one row and its entries in order, so rows may be composed. Bytes that must move per row: D_out * 4 for
// y, read and written, and D_out * 4 for each vector that its adapter has.
#include "ptx.cuh"
#include "site.cuh"

constexpr int THREADS = 128;
constexpr int TILE = THREADS * PER_VECTOR;  // columns of a block

__device__ __forceinline__ void load_floats(const float* __restrict__ from, float (&values)[PER_VECTOR]) {
#pragma unroll
  for (int half = 0; half < 2; half++) {
    const float4 four = reinterpret_cast<const float4*>(from)[half];
    values[4 * half] = four.x;
    values[4 * half + 1] = four.y;
    values[4 * half + 2] = four.z;
    values[4 * half + 3] = four.w;
  }
}

// y[rows[m], part p] = gain_p * y[rows[m], part p] + weights[m] * shift_p, rounded after each entry m.
// vectors is the arena as float32; kinds are 1 for a gain, 2 for a shift, 3 for both.
// Grid (rows with an entry, tiles of 1024 columns over all parts).
extern "C" __global__ void __launch_bounds__(THREADS)
    rescale(const float* __restrict__ vectors, const int* __restrict__ kinds, const i64* __restrict__ vector_starts,
            int num_parts, int end0, int end1, int end2, const int* __restrict__ rows,
            const float* __restrict__ weights, const int* __restrict__ slots, const int* __restrict__ segment_of,
            const int* __restrict__ by_row, const int* __restrict__ row_starts, u16* __restrict__ y, i64 y_stride) {
  const int begin = row_starts[blockIdx.x], end = row_starts[blockIdx.x + 1];
  if (begin == end) return;  // padding of a captured batch
  const Columns tile = find_columns(blockIdx.y, TILE, end0, end1, end2);
  const int column = threadIdx.x * PER_VECTOR;
  if (tile.local + column >= tile.width) return;
  uint4* place = reinterpret_cast<uint4*>(y + rows[by_row[begin]] * y_stride + tile.begin + column);
  uint4 now = make_uint4(0, 0, 0, 0);
  bool is_loaded = false;
  for (int i = begin; i < end; i++) {
    const int entry = by_row[i];
    const i64 site_place = (i64)slots[segment_of[entry]] * num_parts + tile.part;
    const int kind = kinds[site_place];
    if (kind == 0) continue;
    if (!is_loaded) now = *place;
    is_loaded = true;
    float values[PER_VECTOR], vector[PER_VECTOR];
    unpack(now, values);
    const float* from = vectors + vector_starts[site_place] + tile.local + column;
    if (kind & 1) {
      load_floats(from, vector);
#pragma unroll
      for (int j = 0; j < PER_VECTOR; j++) values[j] *= vector[j];
      from += tile.width;
    }
    if (kind & 2) {
      load_floats(from, vector);
      const float weight = weights[entry];
#pragma unroll
      for (int j = 0; j < PER_VECTOR; j++) values[j] = fmaf(weight, vector[j], values[j]);
    }
    now = pack(values);
  }
  if (is_loaded) *place = now;
}
