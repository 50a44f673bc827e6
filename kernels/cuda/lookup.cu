// shrink at an embedding, where a row's features are one token: a column of A. Its elements lie vocab_size apart, so
// each costs a sector: R * 32 bytes per entry must move, beside R * 4 for s.
#include "site.cuh"

// s[m, r] = A[r, token_ids[rows[m]]]. Grid (M, max_rank / 128), 128 threads.
extern "C" __global__ void __launch_bounds__(128)
    look_up(const i64* __restrict__ token_ids, const u16* __restrict__ arena, const i64* __restrict__ a_start,
            const int* __restrict__ ranks, int num_parts, const int* __restrict__ rows, const int* __restrict__ slots,
            const int* __restrict__ segment_of, float* __restrict__ s, int s_width, int in_features) {
  const int entry = blockIdx.x, segment = segment_of[entry];
  if (segment < 0) return;  // padding of a captured batch
  const int slot = slots[segment], r = blockIdx.y * blockDim.x + threadIdx.x;
  if (r >= rank_before(ranks, slot, num_parts, num_parts)) return;
  const i64 place = a_start[slot] + (i64)r * in_features + token_ids[rows[entry]];
  s[(i64)entry * s_width + r] = unpack((u32)arena[place]).x;
}
