// One site and the entries of a batch as kernels get them: kernels.site and kernels.segments, field by field.
#pragma once

#include "element.cuh"

constexpr int MAX_PARTS = 3;  // q, k and v

// What a block works on: consecutive entries of one segment.
struct Unit {
  int first;  // entry
  int count;  // entries, 0 if this block has nothing to do
  int slot;
};

// A tile of columns within one part of a site's output.
struct Columns {
  int part;
  int begin;  // of the tile, in the output
  int local;  // of the tile, in the part
  int width;  // of the part
};

// Tiles are counted through the parts; a part's last tile may reach past its width. Ends are where the parts end.
__device__ __forceinline__ Columns find_columns(int tile, int tile_width, int end0, int end1, int end2) {
  const int ends[MAX_PARTS] = {end0, end1, end2};
  Columns found = {0, 0, 0, end0};
#pragma unroll
  for (int part = 0; part < MAX_PARTS; part++) {
    const int begin = part == 0 ? 0 : ends[part - 1], width = ends[part] - begin;
    const int tiles = (width + tile_width - 1) / tile_width;
    if (tile >= 0 && tile < tiles) found = {part, begin + tile * tile_width, tile * tile_width, width};
    tile -= tiles;
  }
  return found;
}

// Ranks of a slot before a part; part == num_parts gives their sum, R.
__device__ __forceinline__ int rank_before(const int* __restrict__ ranks, int slot, int num_parts, int part) {
  int sum = 0;
  for (int p = 0; p < part; p++) sum += ranks[(i64)slot * num_parts + p];
  return sum;
}

// One of entry m's shrunk values: the partial sums over the slices of D_in, added in their order.
__device__ __forceinline__ float sum_slices(const float* __restrict__ s, i64 place, i64 slice_stride, int num_slices) {
  float sum = 0.f;
  for (int z = 0; z < num_slices; z++) sum += s[place + z * slice_stride];
  return sum;
}
