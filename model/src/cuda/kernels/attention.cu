// Attention in f32: softmax(scale q k^T) v for each head, and its gradients, without ever storing the weights. A warp for each row that stays, a lane
// for each row of a tile that passes by. `lse` is the logarithm of each query's sum of exponentials, from which the backward pass has the
// weights again (Dao et al., 2022). CPU twin: fused/attention.rs. In bf16: attention_tensor_cores.cu.

#include "rows.cuh"

constexpr int TILE = WARP;
constexpr int STAYING = 8;
constexpr int HEAD_MAX = 128;
constexpr int PARTS = HEAD_MAX / WARP; // numbers of an output row that a lane holds: lane, lane + 32, ...

// 2 TILE (head + 1) + 2 STAYING head numbers; rows of a tile are one longer, so that lanes read from different banks.
extern __shared__ float shared[];

// Rows first.. to a tile, zeros where there are none; by the whole block.
__device__ void load_tile(float *tile, Rows<const float> rows, unsigned first, unsigned head) {
    for (unsigned i = threadIdx.x; i < TILE * head; i += blockDim.x) {
        const unsigned row = i / head, column = i % head;
        tile[row * (head + 1) + column] = first + row < rows.count ? rows[first + row][column] : 0.0f;
    }
}

// One row to shared memory, by its warp.
__device__ void load_row(float *to, const float *from, unsigned head) {
    for (unsigned column = threadIdx.x % WARP; column < head; column += WARP) to[column] = from[column];
    __syncwarp();
}

__device__ __forceinline__ float dot(const float *a, const float *b, unsigned head) {
    float sum = 0.0f;
    for (unsigned i = 0; i < head; ++i) sum += a[i] * b[i];
    return sum;
}

// out += sum over the tile's rows of their weight times the row; each lane holds its own row's weight.
__device__ __forceinline__ void add_weighted(float (&out)[PARTS], float weight, const float *tile, unsigned head) {
    const unsigned lane = threadIdx.x % WARP;
    for (int row = 0; row < TILE; ++row) {
        const float w = __shfl_sync(ALL_LANES, weight, row);
        for (int part = 0; part < PARTS; ++part) {
            const unsigned column = lane + part * WARP;
            if (column < head) out[part] += w * tile[row * (head + 1) + column];
        }
    }
}

__device__ __forceinline__ void store_row(float *to, const float (&row)[PARTS], float factor, unsigned head) {
    for (int part = 0; part < PARTS; ++part) {
        const unsigned column = threadIdx.x % WARP + part * WARP;
        if (column < head) to[column] = row[part] * factor;
    }
}

extern "C" __global__ void attend_f32(const float *q, const float *k, const float *v, float *out, float *lse,
                                      unsigned query_count, unsigned key_count, unsigned head, unsigned q_stride,
                                      unsigned kv_stride, float scale) {
    const Rows<const float> queries = rows_of(q, query_count, q_stride, head);
    const Rows<const float> keys = rows_of(k, key_count, kv_stride, head), values = rows_of(v, key_count, kv_stride, head);
    const Rows<float> outs = rows_of(out, query_count, gridDim.y * head, head);
    float *key_tile = shared, *value_tile = key_tile + TILE * (head + 1);
    const unsigned warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    float *query = value_tile + TILE * (head + 1) + warp * head;
    const unsigned row = blockIdx.x * STAYING + warp;
    const bool mine = row < query_count;
    if (mine) load_row(query, queries[row], head);

    float o[PARTS] = {}, greatest = -INFINITY, total = 0.0f;
    for (unsigned first = 0; first < key_count; first += TILE) {
        __syncthreads(); // the tiles before have been read
        load_tile(key_tile, keys, first, head);
        load_tile(value_tile, values, first, head);
        __syncthreads();
        if (!mine) continue;
        const float score =
            first + lane < key_count ? scale * dot(query, key_tile + lane * (head + 1), head) : -INFINITY;
        const float greater = fmaxf(greatest, warp_greatest(score));
        const float weight = expf(score - greater), kept = expf(greatest - greater);
        greatest = greater;
        total = total * kept + warp_sum(weight);
        for (int part = 0; part < PARTS; ++part) o[part] *= kept;
        add_weighted(o, weight, value_tile, head);
    }
    if (!mine) return;
    store_row(outs[row], o, 1.0f / total, head);
    if (lane == 0) lse[head_start(query_count) + row] = greatest + logf(total);
}

// What the backward pass subtracts from each query's gradient of the weights: the sum of dout times out. A warp for each query.
template <typename T>
__device__ void attend_delta(const T *out, const T *dout, float *delta, unsigned query_count, unsigned head) {
    const unsigned row = blockIdx.x * STAYING + threadIdx.x / WARP;
    if (row >= query_count) return;
    const T *o = rows_of(out, query_count, gridDim.y * head, head)[row];
    const T *d = rows_of(dout, query_count, gridDim.y * head, head)[row];
    float sum = 0.0f;
    for (unsigned i = threadIdx.x % WARP; i < head; i += WARP) sum += load(o + i) * load(d + i);
    sum = warp_sum(sum);
    if (threadIdx.x % WARP == 0) delta[head_start(query_count) + row] = sum;
}

extern "C" __global__ void attend_delta_f32(const float *out, const float *dout, float *delta, unsigned query_count,
                                            unsigned head) {
    attend_delta(out, dout, delta, query_count, head);
}

extern "C" __global__ void attend_delta_bf16(const bf16 *out, const bf16 *dout, float *delta, unsigned query_count,
                                             unsigned head) {
    attend_delta(out, dout, delta, query_count, head);
}

// Queries stay and keys pass by, or the other way round: with weight p = exp(scale q k - lse) and ds = p (dout v - delta),
//   dq = scale sum over keys of ds k,    dk = scale sum over queries of ds q,    dv = sum over queries of p dout.
// `stay` and `pass` are each side's two rows: (q, dout) of a query, (k, v) of a key.
template <bool KEYS_STAY>
__device__ void attend_backward(const Rows<const float> (&stay)[2], const Rows<const float> (&pass)[2], const float *lse,
                                const float *delta, Rows<float> dscored, Rows<float> dmixed, unsigned head, float scale) {
    float *tiles[2] = {shared, shared + TILE * (head + 1)};
    const unsigned warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    float *mine[2] = {tiles[1] + TILE * (head + 1) + warp * head, tiles[1] + TILE * (head + 1) + (STAYING + warp) * head};
    const unsigned row = blockIdx.x * STAYING + warp;
    const bool is_mine = row < stay[0].count;
    if (is_mine) {
        load_row(mine[0], stay[0][row], head);
        load_row(mine[1], stay[1][row], head);
    }
    float out[2][PARTS] = {};
    for (unsigned first = 0; first < pass[0].count; first += TILE) {
        __syncthreads(); // the tiles before have been read
        load_tile(tiles[0], pass[0], first, head);
        load_tile(tiles[1], pass[1], first, head);
        __syncthreads();
        if (!is_mine) continue;
        float weight = 0.0f, dscore = 0.0f;
        if (first + lane < pass[0].count) {
            const unsigned query = KEYS_STAY ? first + lane : row;
            weight = expf(scale * dot(mine[0], tiles[0] + lane * (head + 1), head) - lse[query]);
            dscore = weight * (dot(mine[1], tiles[1] + lane * (head + 1), head) - delta[query]);
        }
        add_weighted(out[0], dscore, tiles[0], head);
        if (KEYS_STAY) add_weighted(out[1], weight, tiles[1], head);
    }
    if (!is_mine) return;
    store_row(dscored[row], out[0], scale, head);
    if (KEYS_STAY) store_row(dmixed[row], out[1], 1.0f, head);
}

extern "C" __global__ void attend_queries_backward_f32(const float *q, const float *k, const float *v, const float *dout,
                                                       const float *lse, const float *delta, float *dq,
                                                       unsigned query_count, unsigned key_count, unsigned head,
                                                       unsigned q_stride, unsigned kv_stride, float scale) {
    const Rows<const float> stay[2] = {rows_of(q, query_count, q_stride, head),
                                       rows_of(dout, query_count, gridDim.y * head, head)};
    const Rows<const float> pass[2] = {rows_of(k, key_count, kv_stride, head), rows_of(v, key_count, kv_stride, head)};
    const Rows<float> dqs = rows_of(dq, query_count, q_stride, head);
    const size_t start = head_start(query_count);
    attend_backward<false>(stay, pass, lse + start, delta + start, dqs, dqs, head, scale);
}

extern "C" __global__ void attend_keys_backward_f32(const float *q, const float *k, const float *v, const float *dout,
                                                    const float *lse, const float *delta, float *dk, float *dv,
                                                    unsigned query_count, unsigned key_count, unsigned head,
                                                    unsigned q_stride, unsigned kv_stride, float scale) {
    const Rows<const float> stay[2] = {rows_of(k, key_count, kv_stride, head), rows_of(v, key_count, kv_stride, head)};
    const Rows<const float> pass[2] = {rows_of(q, query_count, q_stride, head),
                                       rows_of(dout, query_count, gridDim.y * head, head)};
    const size_t start = head_start(query_count);
    attend_backward<true>(stay, pass, lse + start, delta + start, rows_of(dk, key_count, kv_stride, head),
                          rows_of(dv, key_count, kv_stride, head), head, scale);
}
