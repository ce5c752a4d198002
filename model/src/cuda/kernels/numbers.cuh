// Numbers in storage and in registers: f32 or bf16 in memory, always f32 in arithmetic.
#pragma once

#include <cuda_bf16.h>
#include <stdint.h>

typedef __nv_bfloat16 bf16;

constexpr int WARP = 32;
constexpr unsigned ALL_LANES = 0xffffffffu;

__device__ __forceinline__ float load(const float *at) { return *at; }
__device__ __forceinline__ float load(const bf16 *at) { return __bfloat162float(*at); }
__device__ __forceinline__ void store(float *at, float value) { *at = value; }
__device__ __forceinline__ void store(bf16 *at, float value) { *at = __float2bfloat16(value); }

// Four neighbours at once; `at` is aligned to four numbers.
__device__ __forceinline__ float4 load4(const float *at) { return *reinterpret_cast<const float4 *>(at); }
__device__ __forceinline__ void store4(float *at, float4 value) { *reinterpret_cast<float4 *>(at) = value; }

__device__ __forceinline__ float4 load4(const bf16 *at) {
    union { uint2 bits; bf16 numbers[4]; } four;
    four.bits = *reinterpret_cast<const uint2 *>(at);
    return make_float4(load(four.numbers), load(four.numbers + 1), load(four.numbers + 2), load(four.numbers + 3));
}

__device__ __forceinline__ void store4(bf16 *at, float4 value) {
    union { uint2 bits; bf16 numbers[4]; } four;
    store(four.numbers, value.x);
    store(four.numbers + 1, value.y);
    store(four.numbers + 2, value.z);
    store(four.numbers + 3, value.w);
    *reinterpret_cast<uint2 *>(at) = four.bits;
}

__device__ __forceinline__ float sum4(float4 v) { return (v.x + v.y) + (v.z + v.w); }

// The sum over a warp, the same bits in every lane.
__device__ __forceinline__ float warp_sum(float value) {
    for (int distance = WARP / 2; distance > 0; distance /= 2) value += __shfl_xor_sync(ALL_LANES, value, distance);
    return value;
}

__device__ __forceinline__ float warp_greatest(float value) {
    for (int distance = WARP / 2; distance > 0; distance /= 2)
        value = fmaxf(value, __shfl_xor_sync(ALL_LANES, value, distance));
    return value;
}

// The sum over a block of whole warps, in every thread; always in the same order. Call it from all threads.
__device__ __forceinline__ float block_sum(float value) {
    __shared__ float parts[WARP];
    value = warp_sum(value);
    __syncthreads(); // the parts of an earlier call have been read
    if (threadIdx.x % WARP == 0) parts[threadIdx.x / WARP] = value;
    __syncthreads();
    float sum = 0.0f;
    for (unsigned warp = 0; warp < blockDim.x / WARP; ++warp) sum += parts[warp];
    return sum;
}
