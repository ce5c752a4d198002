// Attention in bf16 on tensor cores, summed in f32 (compute capability 8.0 or newer): what attention.cu says, in tiles. A warp keeps 16 rows; tiles
// of TILE rows pass by. Heads are padded with zeros to a multiple of 16 (HEAD). The order of all sums is fixed: no atomics.

#include "rows.cuh"
#include "tensor_cores.cuh"

constexpr int TILE = 32;
constexpr int WARP_ROWS = 16;

// Rows that stay in a block, so that everything fits into 48 KiB.
__host__ __device__ constexpr int staying(int head) { return head > 96 ? 32 : 64; }
// Distance of rows in shared memory: eight rows of a matrix lie in different banks.
__host__ __device__ constexpr int pitch(int head) { return head + 8; }

// `count` rows from `first` to shared memory, padded with zeros; by the whole block.
template <int HEAD>
__device__ void load_tile(bf16 *tile, Rows<const bf16> rows, unsigned first, unsigned count, unsigned head) {
    constexpr unsigned VECTOR = 8, VECTORS = HEAD / VECTOR; // 16 bytes
    for (unsigned i = threadIdx.x; i < count * VECTORS; i += blockDim.x) {
        const unsigned row = i / VECTORS, column = i % VECTORS * VECTOR;
        union { uint4 bits; uint16_t numbers[VECTOR]; } some;
        some.bits = make_uint4(0, 0, 0, 0);
        if (first + row < rows.count && column < head) {
            const bf16 *from = rows[first + row] + column;
            if (head % VECTOR == 0) {
                some.bits = *reinterpret_cast<const uint4 *>(from);
            } else {
#pragma unroll
                for (unsigned j = 0; j < VECTOR; ++j)
                    if (column + j < head) some.numbers[j] = reinterpret_cast<const uint16_t *>(from)[j];
            }
        }
        *reinterpret_cast<uint4 *>(tile + row * pitch(HEAD) + column) = some.bits;
    }
}

__device__ __forceinline__ uint32_t pack(float low, float high) {
    union { uint32_t bits; bf16 numbers[2]; } pair;
    pair.numbers[0] = __float2bfloat16(low);
    pair.numbers[1] = __float2bfloat16(high);
    return pair.bits;
}

// The products of a warp's rows with all rows of a tile: sums[j] covers rows 8j.. of the tile.
template <int HEAD>
__device__ __forceinline__ void row_products(float (&sums)[TILE / 8][4], const bf16 *mine, const bf16 *tile) {
    const unsigned lane = threadIdx.x % WARP, matrix = lane / 8, line = lane % 8;
    for (int j = 0; j < TILE / 8; ++j) sums[j][0] = sums[j][1] = sums[j][2] = sums[j][3] = 0.0f;
#pragma unroll
    for (int k = 0; k < HEAD; k += 16) {
        uint32_t left[4];
        load_matrices(left, mine + (matrix % 2 * 8 + line) * pitch(HEAD) + k + matrix / 2 * 8);
#pragma unroll
        for (int j = 0; j < TILE / 8; j += 2) {
            uint32_t right[4];
            load_matrices(right, tile + (j * 8 + matrix / 2 * 8 + line) * pitch(HEAD) + k + matrix % 2 * 8);
            multiply_add(sums[j], left, right[0], right[1]);
            multiply_add(sums[j + 1], left, right[2], right[3]);
        }
    }
}

// out += weights tile, where the weights lie as row_products left its sums: two neighbours make the left side of one product.
template <int HEAD>
__device__ __forceinline__ void add_weighted(float (&out)[HEAD / 8][4], const float (&weights)[TILE / 8][4],
                                             const bf16 *tile) {
    const unsigned lane = threadIdx.x % WARP, matrix = lane / 8, line = lane % 8;
#pragma unroll
    for (int j = 0; j < TILE / 8; j += 2) {
        const uint32_t left[4] = {pack(weights[j][0], weights[j][1]), pack(weights[j][2], weights[j][3]),
                                  pack(weights[j + 1][0], weights[j + 1][1]), pack(weights[j + 1][2], weights[j + 1][3])};
#pragma unroll
        for (int n = 0; n < HEAD / 8; n += 2) {
            uint32_t right[4];
            load_matrices_transposed(right, tile + (j * 8 + matrix % 2 * 8 + line) * pitch(HEAD) + n * 8 + matrix / 2 * 8);
            multiply_add(out[n], left, right[0], right[1]);
            multiply_add(out[n + 1], left, right[2], right[3]);
        }
    }
}

// Writes a warp's 16 rows; `factors` are of its lines g and g + 8.
template <int HEAD>
__device__ __forceinline__ void store_rows(Rows<bf16> to, unsigned first, const float (&out)[HEAD / 8][4],
                                           const float (&factors)[2], unsigned head) {
    const unsigned lane = threadIdx.x % WARP;
#pragma unroll
    for (int n = 0; n < HEAD / 8; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const unsigned row = first + lane / 4 + i / 2 * 8, column = n * 8 + lane % 4 * 2 + i % 2;
            if (row < to.count && column < head) store(to[row] + column, out[n][i] * factors[i / 2]);
        }
    }
}

template <int HEAD>
__device__ void attend(Rows<const bf16> queries, Rows<const bf16> keys, Rows<const bf16> values, Rows<bf16> outs, float *lse,
                       unsigned head, float scale) {
    __shared__ __align__(16) bf16 query_rows[staying(HEAD) * pitch(HEAD)];
    __shared__ __align__(16) bf16 key_tile[TILE * pitch(HEAD)];
    __shared__ __align__(16) bf16 value_tile[TILE * pitch(HEAD)];
    const unsigned lane = threadIdx.x % WARP, first_row = threadIdx.x / WARP * WARP_ROWS;
    load_tile<HEAD>(query_rows, queries, blockIdx.x * staying(HEAD), staying(HEAD), head);

    float o[HEAD / 8][4] = {}, greatest[2] = {-INFINITY, -INFINITY}, total[2] = {};
    for (unsigned first = 0; first < keys.count; first += TILE) {
        __syncthreads(); // the tiles before have been read
        load_tile<HEAD>(key_tile, keys, first, TILE, head);
        load_tile<HEAD>(value_tile, values, first, TILE, head);
        __syncthreads();
        float weights[TILE / 8][4];
        row_products<HEAD>(weights, query_rows + first_row * pitch(HEAD), key_tile);
#pragma unroll
        for (int line = 0; line < 2; ++line) { // rows g and g + 8, each spread over four lanes
            float greater = greatest[line];
            for (int j = 0; j < TILE / 8; ++j) {
                for (int i = 2 * line; i < 2 * line + 2; ++i) {
                    const unsigned key = first + j * 8 + lane % 4 * 2 + i % 2;
                    weights[j][i] = key < keys.count ? weights[j][i] * scale : -INFINITY;
                    greater = fmaxf(greater, weights[j][i]);
                }
            }
            greater = fmaxf(greater, __shfl_xor_sync(ALL_LANES, greater, 1));
            greater = fmaxf(greater, __shfl_xor_sync(ALL_LANES, greater, 2));
            const float kept = expf(greatest[line] - greater);
            float sum = 0.0f;
            for (int j = 0; j < TILE / 8; ++j) {
                for (int i = 2 * line; i < 2 * line + 2; ++i) {
                    weights[j][i] = expf(weights[j][i] - greater);
                    sum += weights[j][i];
                }
            }
            sum += __shfl_xor_sync(ALL_LANES, sum, 1);
            sum += __shfl_xor_sync(ALL_LANES, sum, 2);
            greatest[line] = greater;
            total[line] = total[line] * kept + sum;
            for (int n = 0; n < HEAD / 8; ++n) {
                o[n][2 * line] *= kept;
                o[n][2 * line + 1] *= kept;
            }
        }
        add_weighted<HEAD>(o, weights, value_tile);
    }
    const unsigned row = blockIdx.x * staying(HEAD) + first_row;
    const float factors[2] = {1.0f / total[0], 1.0f / total[1]};
    store_rows<HEAD>(outs, row, o, factors, head);
#pragma unroll
    for (int line = 0; line < 2; ++line) {
        const unsigned mine = row + lane / 4 + line * 8;
        if (lane % 4 == 0 && mine < queries.count) lse[mine] = greatest[line] + logf(total[line]);
    }
}

// As attend_backward in attention.cu: `stay` and `pass` are each side's two rows, (q, dout) of a query, (k, v) of a key.
template <int HEAD, bool KEYS_STAY>
__device__ void attend_backward(const Rows<const bf16> (&stay)[2], const Rows<const bf16> (&pass)[2], const float *lse,
                                const float *delta, Rows<bf16> dscored, Rows<bf16> dmixed, unsigned head, float scale) {
    constexpr int QUERIES = KEYS_STAY ? TILE : staying(HEAD); // of the side that the queries are on
    __shared__ __align__(16) bf16 rows[2][staying(HEAD) * pitch(HEAD)];
    __shared__ __align__(16) bf16 tiles[2][TILE * pitch(HEAD)];
    __shared__ float query_lse[QUERIES], query_delta[QUERIES];
    const unsigned lane = threadIdx.x % WARP, first_row = threadIdx.x / WARP * WARP_ROWS;
    const unsigned block_row = blockIdx.x * staying(HEAD);
    const unsigned query_count = KEYS_STAY ? pass[0].count : stay[0].count;
    const auto load_queries = [&](unsigned first) {
        for (unsigned i = threadIdx.x; i < QUERIES; i += blockDim.x) {
            query_lse[i] = first + i < query_count ? lse[first + i] : 0.0f;
            query_delta[i] = first + i < query_count ? delta[first + i] : 0.0f;
        }
    };
    load_tile<HEAD>(rows[0], stay[0], block_row, staying(HEAD), head);
    load_tile<HEAD>(rows[1], stay[1], block_row, staying(HEAD), head);
    if (!KEYS_STAY) load_queries(block_row);

    float out[HEAD / 8][4] = {}, out_mixed[KEYS_STAY ? HEAD / 8 : 1][4] = {};
    for (unsigned first = 0; first < pass[0].count; first += TILE) {
        __syncthreads(); // the tiles before have been read
        load_tile<HEAD>(tiles[0], pass[0], first, TILE, head);
        load_tile<HEAD>(tiles[1], pass[1], first, TILE, head);
        if (KEYS_STAY) load_queries(first);
        __syncthreads();
        float weights[TILE / 8][4], dscores[TILE / 8][4];
        row_products<HEAD>(weights, rows[0] + first_row * pitch(HEAD), tiles[0]);
        row_products<HEAD>(dscores, rows[1] + first_row * pitch(HEAD), tiles[1]);
        for (int j = 0; j < TILE / 8; ++j) {
            for (int i = 0; i < 4; ++i) {
                const unsigned row = first_row + lane / 4 + i / 2 * 8, passing = j * 8 + lane % 4 * 2 + i % 2;
                const unsigned query = KEYS_STAY ? passing : row;
                const bool there = first + passing < pass[0].count;
                weights[j][i] = there ? expf(scale * weights[j][i] - query_lse[query]) : 0.0f;
                dscores[j][i] = there ? weights[j][i] * (dscores[j][i] - query_delta[query]) : 0.0f;
            }
        }
        add_weighted<HEAD>(out, dscores, tiles[0]);
        if constexpr (KEYS_STAY) add_weighted<HEAD>(out_mixed, weights, tiles[1]);
    }
    const float scales[2] = {scale, scale}, ones[2] = {1.0f, 1.0f};
    store_rows<HEAD>(dscored, block_row + first_row, out, scales, head);
    if constexpr (KEYS_STAY) store_rows<HEAD>(dmixed, block_row + first_row, out_mixed, ones, head);
}

#define KERNELS(HEAD)                                                                                                  \
    extern "C" __global__ void __launch_bounds__(2 * staying(HEAD))                                                    \
        attend_bf16_##HEAD(const bf16 *q, const bf16 *k, const bf16 *v, bf16 *out, float *lse, unsigned query_count,   \
                           unsigned key_count, unsigned head, unsigned q_stride, unsigned kv_stride, float scale) {    \
        attend<HEAD>(rows_of(q, query_count, q_stride, head), rows_of(k, key_count, kv_stride, head),                  \
                     rows_of(v, key_count, kv_stride, head), rows_of(out, query_count, gridDim.y * head, head),        \
                     lse + head_start(query_count), head, scale);                                                      \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(2 * staying(HEAD)) attend_queries_backward_bf16_##HEAD(               \
        const bf16 *q, const bf16 *k, const bf16 *v, const bf16 *dout, const float *lse, const float *delta, bf16 *dq, \
        unsigned query_count, unsigned key_count, unsigned head, unsigned q_stride, unsigned kv_stride, float scale) { \
        const Rows<const bf16> stay[2] = {rows_of(q, query_count, q_stride, head),                                     \
                                          rows_of(dout, query_count, gridDim.y * head, head)};                         \
        const Rows<const bf16> pass[2] = {rows_of(k, key_count, kv_stride, head),                                      \
                                          rows_of(v, key_count, kv_stride, head)};                                     \
        const Rows<bf16> dqs = rows_of(dq, query_count, q_stride, head);                                               \
        const size_t start = head_start(query_count);                                                                  \
        attend_backward<HEAD, false>(stay, pass, lse + start, delta + start, dqs, dqs, head, scale);                   \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(2 * staying(HEAD)) attend_keys_backward_bf16_##HEAD(                  \
        const bf16 *q, const bf16 *k, const bf16 *v, const bf16 *dout, const float *lse, const float *delta, bf16 *dk, \
        bf16 *dv, unsigned query_count, unsigned key_count, unsigned head, unsigned q_stride, unsigned kv_stride,      \
        float scale) {                                                                                                 \
        const Rows<const bf16> stay[2] = {rows_of(k, key_count, kv_stride, head),                                      \
                                          rows_of(v, key_count, kv_stride, head)};                                     \
        const Rows<const bf16> pass[2] = {rows_of(q, query_count, q_stride, head),                                     \
                                          rows_of(dout, query_count, gridDim.y * head, head)};                         \
        const size_t start = head_start(query_count);                                                                  \
        attend_backward<HEAD, true>(stay, pass, lse + start, delta + start, rows_of(dk, key_count, kv_stride, head),   \
                                    rows_of(dv, key_count, kv_stride, head), head, scale);                             \
    }

KERNELS(32)
KERNELS(64)
KERNELS(80)
KERNELS(96)
KERNELS(128)
