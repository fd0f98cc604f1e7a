// Prefill attention on the tensor cores, after FlashAttention-2 (Dao 2023, arXiv:2307.08691), with ALiBi, padding and
// any start.
//
// A thread block computes 64 queries of one sequence and head, 16 per warp. It iterates over the visible keys 64 at a
// time and keeps the state of an online softmax in registers. Scores are float32 exponents of two: exp(x) = 2^(x log2
// e). Queries and probabilities are rounded to T for the tensor cores. WIDTH is the head width, zero-padded to a
// multiple of 16. Clauses: ATT-3 ... ATT-9, ALI-4, ALI-5.

constexpr int TILE = 64;  // queries per thread block, and keys per iteration

/// Row stride of a tile in shared memory: a row and 16 bytes of padding, so that ldmatrix has no bank conflicts.
template <int WIDTH>
constexpr int PITCH = WIDTH + 8;

template <class T>
__device__ __forceinline__ unsigned pack(float low, float high) {
    T pair[2] = {round_to<T>(low), round_to<T>(high)};
    unsigned bits;
    memcpy(&bits, pair, sizeof bits);
    return bits;
}

/// Start copying the keys (or values) [first, first + 64) into a tile, with zeros from `last` on and beyond `stride`.
template <class T, int WIDTH>
__device__ __forceinline__ void copy_tile(T* tile, const T* from, int stride, int first, int last) {
    constexpr int CHUNKS = WIDTH / 8;  // of 16 bytes
    for (int i = threadIdx.x; i < TILE * CHUNKS; i += blockDim.x) {
        const int row = i / CHUNKS, k = i % CHUNKS * 8, key = first + row;
        const bool zeros = key >= last || k >= stride;
        copy_16_async(tile + row * PITCH<WIDTH> + k, zeros ? from : from + size_t(key) * stride + k, zeros);
    }
}

/// Store the block's queries, rounded to T, as a tile (64, WIDTH), with zeros for queries and channels that do not
/// exist.
template <class T, int WIDTH>
__device__ __forceinline__ void store_queries(T* tile, const float* query, int count, int row_stride, int head_width) {
    for (int i = threadIdx.x; i < TILE * WIDTH; i += blockDim.x) {
        const int row = i / WIDTH, k = i % WIDTH;
        const bool exists = row < count && k < head_width;
        tile[row * PITCH<WIDTH> + k] = round_to<T>(exists ? query[size_t(row) * row_stride + k] : 0.f);
    }
}

/// score = Q K^T of a warp's 16 queries and the tile's 64 keys. score[n] has the keys 8 n ... 8 n + 7 in the layout of
/// c of `multiply_tiles`.
template <class T, int WIDTH>
__device__ __forceinline__ void multiply_keys(const T* queries, const T* keys, float (&score)[TILE / 8][4]) {
    const int lane = threadIdx.x % WARP;
#pragma unroll
    for (int n = 0; n < TILE / 8; ++n) score[n][0] = score[n][1] = score[n][2] = score[n][3] = 0.f;
#pragma unroll
    for (int k = 0; k < WIDTH; k += 16) {
        unsigned a[4], b[4];
        load_matrices(a, queries + lane % 16 * PITCH<WIDTH> + k + lane / 16 * 8);
#pragma unroll
        for (int n = 0; n < TILE / 16; ++n) {
            load_matrices(b, keys + (n * 16 + lane % 8 + lane / 16 * 8) * PITCH<WIDTH> + k + lane / 8 % 2 * 8);
            multiply_tiles<T>(score[2 * n], a, b[0], b[1]);
            multiply_tiles<T>(score[2 * n + 1], a, b[2], b[3]);
        }
    }
}

/// sum += P V. The probabilities P have the layout of the scores of `multiply_keys`, which is that of a of
/// `multiply_tiles`.
template <class T, int WIDTH>
__device__ __forceinline__ void multiply_values(const float (&weight)[TILE / 8][4], const T* values, float (&sum)[WIDTH / 8][4]) {
    const int lane = threadIdx.x % WARP;
#pragma unroll
    for (int n = 0; n < TILE / 16; ++n) {
        const float(&low)[4] = weight[2 * n], (&high)[4] = weight[2 * n + 1];
        const unsigned a[4] = {pack<T>(low[0], low[1]), pack<T>(low[2], low[3]), pack<T>(high[0], high[1]),
                               pack<T>(high[2], high[3])};
#pragma unroll
        for (int k = 0; k < WIDTH / 16; ++k) {
            unsigned b[4];
            load_matrices_transposed(b, values + (n * 16 + lane % 16) * PITCH<WIDTH> + k * 16 + lane / 16 * 8);
            multiply_tiles<T>(sum[2 * k], a, b[0], b[1]);
            multiply_tiles<T>(sum[2 * k + 1], a, b[2], b[3]);
        }
    }
}

/// Maximum, or sum, over the four lanes that share a query.
__device__ __forceinline__ float largest_of_4(float x) {
    x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, 1));
    return fmaxf(x, __shfl_xor_sync(ALL_LANES, x, 2));
}
__device__ __forceinline__ float sum_of_4(float x) {
    x += __shfl_xor_sync(ALL_LANES, x, 1);
    return x + __shfl_xor_sync(ALL_LANES, x, 2);
}

/// Grid: (H, time / 64 rounded up, B), 4 warps; blocks with the most keys start first. Arguments and result as in
/// `attention_rows`. Shared memory: (1 + 2 STAGES) tiles of 64 x (WIDTH + 8) T. With two stages, copies of the next
/// tiles overlap with computation.
template <class T, int WIDTH, int STAGES>
__global__ void __launch_bounds__(128) attention_flash(
    const float* __restrict__ query, const T* __restrict__ keys, const T* __restrict__ values,
    const unsigned char* __restrict__ is_real, const float* __restrict__ slopes, T* __restrict__ context,
    const int* __restrict__ start, int time, int heads, int head_width, int head_stride, int capacity, double scale) {
    DYNAMIC_SHARED(T, tiles);
    constexpr int SIZE = TILE * PITCH<WIDTH>;
    T *const query_tile = tiles, *const key_tiles = tiles + SIZE, *const value_tiles = key_tiles + STAGES * SIZE;
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    const auto [head, batch, count, row_stride, first_column, last, row] = query_block<TILE>(*start, time, heads, head_width);
    const CacheShape cache{heads, head_width, head_stride, capacity};
    keys += cache.offset(batch, head, 0);
    values += cache.offset(batch, head, 0);
    if (is_real) is_real += size_t(batch) * capacity;
    const float slope = slopes[head] * LOG2_E, unit = float(scale) * LOG2_E;

    copy_tile<T, WIDTH>(key_tiles, keys, head_stride, 0, last);
    copy_tile<T, WIDTH>(value_tiles, values, head_stride, 0, last);
    close_copy_group();
    store_queries<T, WIDTH>(query_tile, query + row, count, row_stride, head_width);

    // This lane has the two queries in rows 16 warp + lane / 4 + 8 i, i < 2: elements 2 i and 2 i + 1 of each fragment
    // of four.
    const int first_row = warp * 16 + lane / 4, column[2] = {first_column + first_row, first_column + first_row + 8};
    float sum[WIDTH / 8][4] = {}, running_max[2] = {NO_SCORE, NO_SCORE}, total[2] = {};
    const int steps = (last + TILE - 1) / TILE;
    for (int step = 0; step < steps; ++step) {
        const int stage = step % STAGES, next = (step + 1) % STAGES;
        if (STAGES > 1 && step + 1 < steps) {
            copy_tile<T, WIDTH>(key_tiles + next * SIZE, keys, head_stride, (step + 1) * TILE, last);
            copy_tile<T, WIDTH>(value_tiles + next * SIZE, values, head_stride, (step + 1) * TILE, last);
        }
        close_copy_group();
        wait_for_copies<STAGES - 1>();
        __syncthreads();

        float score[TILE / 8][4], new_max[2] = {running_max[0], running_max[1]};
        multiply_keys<T, WIDTH>(query_tile + warp * 16 * PITCH<WIDTH>, key_tiles + stage * SIZE, score);
        const bool all_visible = !is_real && (step + 1) * TILE <= first_column + warp * 16 + 1;
#pragma unroll
        for (int n = 0; n < TILE / 8; ++n) {
#pragma unroll
            for (int e = 0; e < 4; ++e) {
                const int key = step * TILE + n * 8 + lane % 4 * 2 + e % 2;
                score[n][e] = score[n][e] * unit + slope * float(key - column[e / 2]);
                if (!all_visible && (key > column[e / 2] || key >= last || (is_real && !is_real[key]))) score[n][e] = NO_SCORE;
                new_max[e / 2] = fmaxf(new_max[e / 2], score[n][e]);
            }
        }
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            new_max[i] = largest_of_4(new_max[i]);
            const float factor = exp2f(running_max[i] - new_max[i]);
            running_max[i] = new_max[i];
            total[i] *= factor;
#pragma unroll
            for (int k = 0; k < WIDTH / 8; ++k) {
                sum[k][2 * i] *= factor;
                sum[k][2 * i + 1] *= factor;
            }
        }
#pragma unroll
        for (int n = 0; n < TILE / 8; ++n) {
#pragma unroll
            for (int e = 0; e < 4; ++e) {
                // in a row without a visible key so far these are ones, which are rescaled to zero later
                score[n][e] = exp2f(score[n][e] - running_max[e / 2]);
                total[e / 2] += score[n][e];
            }
        }
        multiply_values<T, WIDTH>(score, value_tiles + stage * SIZE, sum);
        __syncthreads();  // the tiles may be written again
        if (STAGES == 1 && step + 1 < steps) {
            copy_tile<T, WIDTH>(key_tiles, keys, head_stride, (step + 1) * TILE, last);
            copy_tile<T, WIDTH>(value_tiles, values, head_stride, (step + 1) * TILE, last);
        }
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        const bool exists = first_row + 8 * i < count, sees = exists && !(is_real && !is_real[column[i]]);
        const float all = sum_of_4(total[i]), inverse = sees ? 1.f / all : 0.f;
        T* const out = context + row + size_t(first_row + 8 * i) * row_stride;
#pragma unroll
        for (int k = 0; k < WIDTH / 8; ++k) {
#pragma unroll
            for (int e = 0; e < 2; ++e) {
                const int channel = k * 8 + lane % 4 * 2 + e;
                if (exists && channel < head_width) out[channel] = round_to<T>(sum[k][2 * i + e] * inverse);
            }
        }
    }
}
