// The 16-bit floats of the model: ELEMENT is 1 for bfloat16 and 2 for float16, given to the compiler.
// Without NVIDIA's headers, so that nothing but the driver need be installed and a kernel compiles in a moment.
#pragma once

typedef unsigned short u16;
typedef unsigned int u32;
typedef long long i64;

constexpr int PER_VECTOR = 8;  // elements in the 16 bytes that a thread moves at once

// The two elements of a word, the one at the lower address first.
__device__ __forceinline__ float2 unpack(u32 word) {
#if ELEMENT == 1
  return make_float2(__uint_as_float(word << 16), __uint_as_float(word & 0xffff0000u));
#else
  float2 pair;
  asm("{\n  .reg .b16 low, high;\n  mov.b32 {low, high}, %2;\n  cvt.f32.f16 %0, low;\n  cvt.f32.f16 %1, high;\n}"
      : "=f"(pair.x), "=f"(pair.y)
      : "r"(word));
  return pair;
#endif
}

// Two floats rounded to nearest even, `first` at the lower address.
__device__ __forceinline__ u32 pack(float first, float second) {
  u32 word;
#if ELEMENT == 1
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(second), "f"(first));
#else
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(second), "f"(first));
#endif
  return word;
}

// Whether rounding gives a finite element, for any float but bfloat16's own last step before infinity.
__device__ __forceinline__ bool is_in_range(float value) {
#if ELEMENT == 1
  return true;
#else
  return fabsf(value) < 65520.f;  // the midpoint between float16's largest number and the next that it lacks
#endif
}

__device__ __forceinline__ void unpack(const uint4& vector, float (&values)[PER_VECTOR]) {
  const u32 words[4] = {vector.x, vector.y, vector.z, vector.w};
#pragma unroll
  for (int i = 0; i < 4; i++) {
    const float2 pair = unpack(words[i]);
    values[2 * i] = pair.x;
    values[2 * i + 1] = pair.y;
  }
}

__device__ __forceinline__ uint4 pack(const float (&v)[PER_VECTOR]) {
  return make_uint4(pack(v[0], v[1]), pack(v[2], v[3]), pack(v[4], v[5]), pack(v[6], v[7]));
}

// y + values, rounded once.
__device__ __forceinline__ uint4 add(const uint4& y, const float (&values)[PER_VECTOR]) {
  float sum[PER_VECTOR];
  unpack(y, sum);
#pragma unroll
  for (int i = 0; i < PER_VECTOR; i++) sum[i] += values[i];
  return pack(sum);
}
