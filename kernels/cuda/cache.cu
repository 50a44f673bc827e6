// Keys and values to their places in the KV cache. Torch has no one launch for both, and its index_put reads strides.
// Moves 4 * H_kv * D * size bytes per row, each once, in vectors of 16 bytes; the dtype does not matter.
#include "element.cuh"

// cache[index[t]] = row t, for k (blockIdx.y = 0) and v (1). Grid (T, 2), 128 threads. Strides and the row's length
// count vectors. A negative index is padding.
extern "C" __global__ void __launch_bounds__(128)
    write_kv(const uint4* __restrict__ k, const uint4* __restrict__ v, uint4* __restrict__ k_cache,
             uint4* __restrict__ v_cache, const i64* __restrict__ index, i64 k_stride, i64 v_stride, int vectors) {
  const i64 place = index[blockIdx.x];
  if (place < 0) return;
  const uint4* from = blockIdx.y == 0 ? k + blockIdx.x * k_stride : v + blockIdx.x * v_stride;
  uint4* to = (blockIdx.y == 0 ? k_cache : v_cache) + place * vectors;
  for (int i = threadIdx.x; i < vectors; i += blockDim.x) to[i] = from[i];
}
