// What attention reads and writes of one head of one sample: rows of `head` numbers at a constant distance.
#pragma once

#include "numbers.cuh"

template <typename T>
struct Rows {
    T *first;
    size_t stride;
    unsigned count;

    __device__ __forceinline__ T *operator[](unsigned row) const { return first + row * stride; }
};

// The rows of this block's head (blockIdx.y) and sample (blockIdx.z) in a tensor `[batch, count, stride]`.
template <typename T>
__device__ __forceinline__ Rows<T> rows_of(T *tensor, unsigned count, unsigned stride, unsigned head) {
    return Rows<T>{tensor + size_t(blockIdx.z) * count * stride + size_t(blockIdx.y) * head, stride, count};
}

// Where this block's head and sample begin in a tensor `[batch, heads, count]`.
__device__ __forceinline__ size_t head_start(unsigned count) {
    return (size_t(blockIdx.z) * gridDim.y + blockIdx.y) * count;
}
