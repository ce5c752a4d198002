// LN(x) (1 + scale) + shift and x + y gate, with their gradients. The modulation is `[batch, rows, width]`, f32, one row each for shift, scale and
// gate. Widths are multiples of four. CPU twin: fused/modulation.rs.

#include "numbers.cuh"

// Threads of a block that sums over tokens: COLUMNS neighbours of a row by LINES tokens.
constexpr int COLUMNS = 32;
constexpr int LINES = 8;

// Mean and reciprocal standard deviation of a row, by the whole block.
template <typename T>
__device__ float2 statistics(const T *x, unsigned width, float epsilon) {
    float sum = 0.0f;
    for (unsigned i = 4 * threadIdx.x; i < width; i += 4 * blockDim.x) sum += sum4(load4(x + i));
    const float mean = block_sum(sum) / width;
    float squares = 0.0f;
    for (unsigned i = 4 * threadIdx.x; i < width; i += 4 * blockDim.x) {
        const float4 v = load4(x + i);
        const float4 d = make_float4(v.x - mean, v.y - mean, v.z - mean, v.w - mean);
        squares += sum4(make_float4(d.x * d.x, d.y * d.y, d.z * d.z, d.w * d.w));
    }
    return make_float2(mean, rsqrtf(block_sum(squares) / width + epsilon));
}

// A block for each row of x `[batch, tokens, width]`. Rows 0 and 1 of the modulation are shift and scale.
template <typename T>
__device__ void modulate(const T *x, const float *modulation, T *out, unsigned tokens, unsigned width, unsigned rows,
                         float epsilon) {
    x += size_t(blockIdx.x) * width;
    out += size_t(blockIdx.x) * width;
    const float *shift = modulation + size_t(blockIdx.x / tokens) * rows * width;
    const float *scale = shift + width;
    const float2 s = statistics(x, width, epsilon);
    for (unsigned i = 4 * threadIdx.x; i < width; i += 4 * blockDim.x) {
        const float4 v = load4(x + i), a = load4(scale + i), b = load4(shift + i);
        store4(out + i, make_float4((v.x - s.x) * s.y * (1.0f + a.x) + b.x, (v.y - s.x) * s.y * (1.0f + a.y) + b.y,
                                    (v.z - s.x) * s.y * (1.0f + a.z) + b.z, (v.w - s.x) * s.y * (1.0f + a.w) + b.w));
    }
}

// The gradient of x, a block for each row; leaves mean and reciprocal deviation of each row in `saved`.
// With n = (x - mean) r and g = dy (1 + scale): dx = r (g - mean(g) - n mean(g n)).
template <typename T>
__device__ void modulate_backward(const T *x, const float *modulation, const T *dy, T *dx, float2 *saved,
                                  unsigned tokens, unsigned width, unsigned rows, float epsilon) {
    x += size_t(blockIdx.x) * width;
    dy += size_t(blockIdx.x) * width;
    dx += size_t(blockIdx.x) * width;
    const float *scale = modulation + (size_t(blockIdx.x / tokens) * rows + 1) * width;
    const float2 s = statistics(x, width, epsilon);
    float sum = 0.0f, with_n = 0.0f;
    for (unsigned i = 4 * threadIdx.x; i < width; i += 4 * blockDim.x) {
        const float4 v = load4(x + i), a = load4(scale + i), d = load4(dy + i);
        const float4 g = make_float4(d.x * (1.0f + a.x), d.y * (1.0f + a.y), d.z * (1.0f + a.z), d.w * (1.0f + a.w));
        sum += sum4(g);
        with_n += sum4(make_float4(g.x * (v.x - s.x), g.y * (v.y - s.x), g.z * (v.z - s.x), g.w * (v.w - s.x)));
    }
    const float mean_g = block_sum(sum) / width;
    const float mean_gn = block_sum(with_n) * s.y / width;
    for (unsigned i = 4 * threadIdx.x; i < width; i += 4 * blockDim.x) {
        const float4 v = load4(x + i), a = load4(scale + i), d = load4(dy + i);
        store4(dx + i, make_float4(s.y * (d.x * (1.0f + a.x) - mean_g - (v.x - s.x) * s.y * mean_gn),
                                   s.y * (d.y * (1.0f + a.y) - mean_g - (v.y - s.x) * s.y * mean_gn),
                                   s.y * (d.z * (1.0f + a.z) - mean_g - (v.z - s.x) * s.y * mean_gn),
                                   s.y * (d.w * (1.0f + a.w) - mean_g - (v.w - s.x) * s.y * mean_gn)));
    }
    if (threadIdx.x == 0) saved[blockIdx.x] = s;
}

// The sum of a column's LINES parts, in their order, for the threads of line 0. Call it from all threads.
__device__ __forceinline__ float sum_lines(float value) {
    __shared__ float parts[LINES][COLUMNS];
    __syncthreads();
    parts[threadIdx.y][threadIdx.x] = value;
    __syncthreads();
    float sum = 0.0f;
    for (int line = 0; line < LINES; ++line) sum += parts[line][threadIdx.x];
    return sum;
}

// The gradients of shift and scale, summed over a sample's tokens without atomics: a block for COLUMNS columns of a sample.
template <typename T>
__device__ void modulate_sums(const T *x, const T *dy, const float2 *saved, float *dmodulation, unsigned tokens,
                              unsigned width, unsigned rows) {
    const unsigned column = blockIdx.x * COLUMNS + threadIdx.x;
    float dshift = 0.0f, dscale = 0.0f;
    if (column < width) {
        for (unsigned token = threadIdx.y; token < tokens; token += LINES) {
            const size_t row = size_t(blockIdx.y) * tokens + token;
            const float2 s = saved[row];
            const float d = load(dy + row * width + column);
            dshift += d;
            dscale += d * (load(x + row * width + column) - s.x) * s.y;
        }
    }
    dshift = sum_lines(dshift);
    dscale = sum_lines(dscale);
    if (threadIdx.y == 0 && column < width) {
        float *out = dmodulation + size_t(blockIdx.y) * rows * width + column;
        out[0] = dshift;
        out[width] = dscale;
    }
}

// x + y gate, where the gate is row 2 of the modulation; four numbers a thread.
template <typename T>
__device__ void gated(const T *x, const T *y, const float *modulation, T *out, unsigned tokens, unsigned width,
                      unsigned rows) {
    const unsigned column = 4 * (blockIdx.y * blockDim.x + threadIdx.x);
    if (column >= width) return;
    const size_t at = size_t(blockIdx.x) * width + column;
    const float4 g = load4(modulation + (size_t(blockIdx.x / tokens) * rows + 2) * width + column);
    const float4 a = load4(x + at), b = load4(y + at);
    store4(out + at, make_float4(a.x + b.x * g.x, a.y + b.y * g.y, a.z + b.z * g.z, a.w + b.w * g.w));
}

// The gradients of y, dout gate, and of the gate, the sum of dout y over a sample's tokens. That of x is dout itself.
template <typename T>
__device__ void gated_backward(const T *y, const float *modulation, const T *dout, T *dy, float *dmodulation,
                               unsigned tokens, unsigned width, unsigned rows) {
    const unsigned column = blockIdx.x * COLUMNS + threadIdx.x;
    const size_t gate_at = (size_t(blockIdx.y) * rows + 2) * width + column;
    float dgate = 0.0f;
    if (column < width) {
        const float gate = modulation[gate_at];
        for (unsigned token = threadIdx.y; token < tokens; token += LINES) {
            const size_t at = (size_t(blockIdx.y) * tokens + token) * width + column;
            const float d = load(dout + at);
            store(dy + at, d * gate);
            dgate += d * load(y + at);
        }
    }
    dgate = sum_lines(dgate);
    if (threadIdx.y == 0 && column < width) dmodulation[gate_at] = dgate;
}

#define KERNELS(T, NAME)                                                                                               \
    extern "C" __global__ void modulate_##NAME(const T *x, const float *modulation, T *out, unsigned tokens,          \
                                               unsigned width, unsigned rows, float epsilon) {                         \
        modulate(x, modulation, out, tokens, width, rows, epsilon);                                                    \
    }                                                                                                                  \
    extern "C" __global__ void modulate_backward_##NAME(const T *x, const float *modulation, const T *dy, T *dx,       \
                                                        float2 *saved, unsigned tokens, unsigned width,                \
                                                        unsigned rows, float epsilon) {                                \
        modulate_backward(x, modulation, dy, dx, saved, tokens, width, rows, epsilon);                                 \
    }                                                                                                                  \
    extern "C" __global__ void modulate_sums_##NAME(const T *x, const T *dy, const float2 *saved, float *dmodulation,  \
                                                    unsigned tokens, unsigned width, unsigned rows) {                  \
        modulate_sums(x, dy, saved, dmodulation, tokens, width, rows);                                                 \
    }                                                                                                                  \
    extern "C" __global__ void gated_##NAME(const T *x, const T *y, const float *modulation, T *out, unsigned tokens,  \
                                            unsigned width, unsigned rows) {                                           \
        gated(x, y, modulation, out, tokens, width, rows);                                                             \
    }                                                                                                                  \
    extern "C" __global__ void gated_backward_##NAME(const T *y, const float *modulation, const T *dout, T *dy,        \
                                                     float *dmodulation, unsigned tokens, unsigned width,              \
                                                     unsigned rows) {                                                  \
        gated_backward(y, modulation, dout, dy, dmodulation, tokens, width, rows);                                     \
    }

KERNELS(float, f32)
KERNELS(bf16, bf16)
