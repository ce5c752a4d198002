// AdamW and the averaged weights over flat f32 buffers. The numbers of all trained parameters lie one after the other in `master`, both moments and
// `average`; the parameters that are computed with, and their gradients, lie where candle put them. CPU twin: optimizer/cpu.rs.

#include "numbers.cuh"

// One tensor of the table.
struct Group {
    void *parameter;      // what is computed with, f32 or bf16
    const void *gradient; // of the same type
    uint64_t start;       // of its numbers in the flat buffers
    uint64_t length;
};

// The part of a group that a block works on.
struct Piece {
    uint32_t group;
    uint32_t number; // pieces of this group before it
};

// What a block works on at most.
constexpr unsigned PIECE = 4096;

// What stopped the first step that failed; step 0 stands for none.
struct Failure {
    uint32_t step;
    float loss;
    float norm;
};

// What one step shares among all groups.
struct Update {
    float rate;
    float second_scale;
    float clip;
    float keep; // the averaged weights' decay
};

// The sum of squares of each piece's gradients.
template <typename T>
__device__ void gradient_squares(const Group *groups, const Piece *pieces, float *sums) {
    const Piece piece = pieces[blockIdx.x];
    const Group group = groups[piece.group];
    const T *gradient = static_cast<const T *>(group.gradient);
    const uint64_t first = uint64_t(piece.number) * PIECE;
    const uint64_t last = first + PIECE < group.length ? first + PIECE : group.length;
    float sum = 0.0f;
    for (uint64_t i = first + threadIdx.x; i < last; i += blockDim.x) {
        const float g = load(gradient + i);
        sum += g * g;
    }
    sum = block_sum(sum);
    if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

// The norm of all gradients, by one block, always in the same order. Notes the step where it or the loss is not finite.
extern "C" __global__ void gradient_norm(const float *sums, unsigned count, const float *loss, unsigned step, float *norm,
                                         Failure *failure) {
    __shared__ double parts[1024];
    double sum = 0.0;
    for (unsigned i = threadIdx.x; i < count; i += blockDim.x) sum += sums[i];
    parts[threadIdx.x] = sum;
    for (unsigned half = blockDim.x / 2; half > 0; half /= 2) {
        __syncthreads();
        if (threadIdx.x < half) parts[threadIdx.x] += parts[threadIdx.x + half];
    }
    if (threadIdx.x == 0) {
        *norm = float(sqrt(parts[0]));
        if (!(isfinite(*norm) && isfinite(*loss)) && failure->step == 0) *failure = Failure{step, *loss, *norm};
    }
}

// One step for every number; nothing after a step that failed.
template <typename T>
__device__ void adamw(const Group *groups, const Piece *pieces, float *master, float *first_moment, float *second_moment,
                      float *average, const float *norm, const Failure *failure, Update update) {
    if (failure->step != 0) return;
    constexpr float BETA1 = 0.9f, BETA2 = 0.999f, EPSILON = 1e-8f;
    const Piece piece = pieces[blockIdx.x];
    const Group group = groups[piece.group];
    const T *gradients = static_cast<const T *>(group.gradient);
    T *parameters = static_cast<T *>(group.parameter);
    const uint64_t first = uint64_t(piece.number) * PIECE;
    const uint64_t last = first + PIECE < group.length ? first + PIECE : group.length;
    const float gradient_scale = fminf(update.clip / *norm, 1.0f);
    for (uint64_t i = first + threadIdx.x; i < last; i += blockDim.x) {
        const uint64_t at = group.start + i;
        const float gradient = load(gradients + i) * gradient_scale;
        const float m = BETA1 * first_moment[at] + (1.0f - BETA1) * gradient;
        const float v = BETA2 * second_moment[at] + (1.0f - BETA2) * gradient * gradient;
        const float value = master[at] - update.rate * m / (sqrtf(v * update.second_scale) + EPSILON);
        const float mean = average[at];
        first_moment[at] = m;
        second_moment[at] = v;
        master[at] = value;
        average[at] = mean + (1.0f - update.keep) * (value - mean);
        store(parameters + i, value);
    }
}

#define KERNELS(T, NAME)                                                                                               \
    extern "C" __global__ void gradient_squares_##NAME(const Group *groups, const Piece *pieces, float *sums) {        \
        gradient_squares<T>(groups, pieces, sums);                                                                     \
    }                                                                                                                  \
    extern "C" __global__ void adamw_##NAME(const Group *groups, const Piece *pieces, float *master,                   \
                                            float *first_moment, float *second_moment, float *average,                 \
                                            const float *norm, const Failure *failure, float rate,                     \
                                            float second_scale, float clip, float keep) {                              \
        adamw<T>(groups, pieces, master, first_moment, second_moment, average, norm, failure,                          \
                 Update{rate, second_scale, clip, keep});                                                              \
    }

KERNELS(float, f32)
KERNELS(bf16, bf16)
