// What surrounds the matrix products: bias and its gradient, and GELU in its tanh form. CPU twins: fused/linear.rs, fused/vector.rs.

#include "numbers.cuh"

// Threads of a block that sums over rows: COLUMNS neighbours of a row by LINES rows.
constexpr int COLUMNS = 32;
constexpr int LINES = 8;

// Adds the bias to every row of x `[rows, columns]`; a block for each row.
template <typename T>
__device__ void add_bias(const T *x, const T *bias, T *out, unsigned columns) {
    x += size_t(blockIdx.x) * columns;
    out += size_t(blockIdx.x) * columns;
    if (columns % 4 == 0) {
        for (unsigned i = 4 * threadIdx.x; i < columns; i += 4 * blockDim.x) {
            const float4 a = load4(x + i), b = load4(bias + i);
            store4(out + i, make_float4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w));
        }
    } else {
        for (unsigned i = threadIdx.x; i < columns; i += blockDim.x) store(out + i, load(x + i) + load(bias + i));
    }
}

// Sums each share of `share` rows of x `[rows, columns]` into a row of out. Two calls, over shares and then over their sums, make the sum over
// all rows, always in the same order.
template <typename In, typename Out>
__device__ void sum_rows(const In *x, Out *out, unsigned rows, unsigned columns, unsigned share) {
    __shared__ float parts[LINES][COLUMNS];
    const unsigned column = blockIdx.x * COLUMNS + threadIdx.x;
    const unsigned first = blockIdx.y * share, last = min(first + share, rows);
    float sum = 0.0f;
    if (column < columns) {
        for (unsigned row = first + threadIdx.y; row < last; row += LINES) sum += load(x + size_t(row) * columns + column);
    }
    parts[threadIdx.y][threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.y == 0 && column < columns) {
        float total = 0.0f;
        for (int line = 0; line < LINES; ++line) total += parts[line][threadIdx.x];
        store(out + size_t(blockIdx.y) * columns + column, total);
    }
}

constexpr float GELU_SCALE = 0.79788456f; // sqrt(2 / pi)
constexpr float GELU_CUBIC = 0.044715f;

__device__ __forceinline__ float gelu(float x) {
    return 0.5f * x * (1.0f + tanhf(GELU_SCALE * (x + GELU_CUBIC * x * x * x)));
}

__device__ __forceinline__ float gelu_derivative(float x) {
    const float t = tanhf(GELU_SCALE * (x + GELU_CUBIC * x * x * x));
    const float inner = GELU_SCALE * (1.0f + 3.0f * GELU_CUBIC * x * x);
    return 0.5f * (1.0f + t) + 0.5f * x * (1.0f - t * t) * inner;
}

// Four numbers a thread; `count` is a multiple of four.
template <typename T>
__device__ void gelu_all(const T *x, T *out, size_t count) {
    const size_t i = 4 * (size_t(blockIdx.x) * blockDim.x + threadIdx.x);
    if (i >= count) return;
    const float4 v = load4(x + i);
    store4(out + i, make_float4(gelu(v.x), gelu(v.y), gelu(v.z), gelu(v.w)));
}

template <typename T>
__device__ void gelu_backward(const T *x, const T *dout, T *dx, size_t count) {
    const size_t i = 4 * (size_t(blockIdx.x) * blockDim.x + threadIdx.x);
    if (i >= count) return;
    const float4 v = load4(x + i), d = load4(dout + i);
    store4(dx + i, make_float4(d.x * gelu_derivative(v.x), d.y * gelu_derivative(v.y), d.z * gelu_derivative(v.z),
                               d.w * gelu_derivative(v.w)));
}

#define KERNELS(T, NAME)                                                                                               \
    extern "C" __global__ void add_bias_##NAME(const T *x, const T *bias, T *out, unsigned columns) {                \
        add_bias(x, bias, out, columns);                                                                               \
    }                                                                                                                  \
    extern "C" __global__ void sum_rows_##NAME(const T *x, float *out, unsigned rows, unsigned columns,                \
                                               unsigned share) {                                                       \
        sum_rows(x, out, rows, columns, share);                                                                        \
    }                                                                                                                  \
    extern "C" __global__ void sum_shares_##NAME(const float *x, T *out, unsigned rows, unsigned columns,              \
                                                 unsigned share) {                                                     \
        sum_rows(x, out, rows, columns, share);                                                                        \
    }                                                                                                                  \
    extern "C" __global__ void gelu_##NAME(const T *x, T *out, size_t count) { gelu_all(x, out, count); }              \
    extern "C" __global__ void gelu_backward_##NAME(const T *x, const T *dout, T *dx, size_t count) {                  \
        gelu_backward(x, dout, dx, count);                                                                             \
    }

KERNELS(float, f32)
KERNELS(bf16, bf16)
