// Prefill attention in float32 on CUDA cores: the counterpart of `attention_flash`, with ALiBi, padding and any start.
//
// A thread block computes 64 queries of one sequence and head and iterates over the visible keys KEYS at a time. Both
// products use register tiles, so that each number loaded from shared memory serves several multiplications. Lane 2 g +
// p of warp w has the queries 8 i + 2 w + p, i < 8: their scores with the keys g + 16 j of an iteration, and WIDTH / 16
// channels of their sums. The copy of the values overlaps with Q K^T, and the copy of the next keys with P V. Scores
// are exponents of two: exp(x) = 2^(x log2 e). WIDTH is the head width, zero-padded to a multiple of 16. Clauses: ATT-3
// ... ATT-9, ALI-4, ALI-5.

constexpr int QUERIES = 64, WARPS = 4;
constexpr int QUERIES_PER_LANE = 8;
constexpr int LANES_PER_QUERY = 16;  // lanes that hold the same queries

/// Swizzle of a row of queries or keys: element k is stored at k ^ swizzle(row), so that 16-byte loads from eight
/// successive rows have no bank conflicts. Rows that are 8 apart have the same swizzle.
template <int WIDTH>
__device__ __forceinline__ int swizzle(int row) {
    return 4 * (WIDTH % 32 == 0 ? row % 8 : row / 2 % 4);
}

/// Load N numbers from shared memory, aligned to N numbers; N is 4, 2 or 1.
template <int N>
__device__ __forceinline__ void load_few(const float* from, float* x) {
    if constexpr (N == 4) {
        unpack<float>(load_16(from), x);
    } else if constexpr (N == 2) {
        const float2 two = *reinterpret_cast<const float2*>(from);
        x[0] = two.x;
        x[1] = two.y;
    } else {
        x[0] = *from;
    }
}

/// Start copying the keys (or values) [first, first + KEYS) into a tile, with zeros from `last` on and beyond `stride`.
template <int WIDTH, int KEYS, bool SWIZZLED>
__device__ __forceinline__ void copy_tile(float* tile, const float* from, int stride, int first, int last) {
    constexpr int LANES = WIDTH % 32 == 0 ? 8 : 4, ROWS = WARPS * WARP / LANES;  // lanes per row; rows per copy
    const int row = threadIdx.x / LANES, k = threadIdx.x % LANES * 4;
    const float* const mine = from + size_t(first + row) * stride + k;
    float* const to = tile + row * WIDTH + (SWIZZLED ? k ^ swizzle<WIDTH>(row) : k);
#pragma unroll
    for (int r = 0; r < KEYS; r += ROWS) {
#pragma unroll
        for (int c = 0; c < WIDTH; c += 4 * LANES) {
            const bool zeros = first + row + r >= last || k + c >= stride;
            copy_16_async(to + r * WIDTH + c, zeros ? from : mine + r * stride + c, zeros);
        }
    }
    close_copy_group();
}

/// Store the block's queries times `unit` as a tile (64, WIDTH), with zeros for queries and channels that do not exist.
template <int WIDTH>
__device__ __forceinline__ void store_queries(
    float* tile, const float* query, int count, int row_stride, int head_width, float unit) {
    for (int i = threadIdx.x; i < QUERIES * WIDTH; i += WARPS * WARP) {
        const int row = i / WIDTH, k = i % WIDTH;
        const bool exists = row < count && k < head_width;
        tile[row * WIDTH + (k ^ swizzle<WIDTH>(row))] = exists ? query[size_t(row) * row_stride + k] * unit : 0.f;
    }
}

/// score[i][j] = Q K^T of query row + 8 i and key key + 16 j of the tiles.
template <int WIDTH, int N>
__device__ __forceinline__ void multiply_keys(
    const float* queries, const float* keys, int row, int key, float (&score)[QUERIES_PER_LANE][N]) {
    const int query_swizzle = swizzle<WIDTH>(row), key_swizzle = swizzle<WIDTH>(key);
#pragma unroll
    for (int i = 0; i < QUERIES_PER_LANE; ++i) {
#pragma unroll
        for (int j = 0; j < N; ++j) score[i][j] = 0.f;
    }
#pragma unroll 2
    for (int k = 0; k < WIDTH; k += 4) {
        float left[QUERIES_PER_LANE][4], right[N][4];
#pragma unroll
        for (int i = 0; i < QUERIES_PER_LANE; ++i) load_few<4>(queries + (row + 8 * i) * WIDTH + (k ^ query_swizzle), left[i]);
#pragma unroll
        for (int j = 0; j < N; ++j) load_few<4>(keys + (key + LANES_PER_QUERY * j) * WIDTH + (k ^ key_swizzle), right[j]);
#pragma unroll
        for (int c = 0; c < 4; ++c) {
#pragma unroll
            for (int i = 0; i < QUERIES_PER_LANE; ++i) {
#pragma unroll
                for (int j = 0; j < N; ++j) score[i][j] += left[i][c] * right[j][c];
            }
        }
    }
}

/// Index of a key in a row of the probability tile, swizzled so that neither the store nor the load of a warp has bank
/// conflicts.
template <int KEYS>
__device__ __forceinline__ int weight_index(int row, int key) {
    return row * KEYS + (key ^ row % 2 * 16);
}

/// Numbers per load of the values.
template <int CHANNELS>
constexpr int VALUES_A_LOAD = CHANNELS % 4 == 0 ? 4 : CHANNELS % 2 == 0 ? 2 : 1;

/// Channel of element m of a lane's sums.
template <int CHANNELS>
__device__ __forceinline__ int channel(int group, int m) {
    constexpr int N = VALUES_A_LOAD<CHANNELS>;
    return (m / N * LANES_PER_QUERY + group) * N + m % N;
}

/// sum += P V, for the queries row + 8 i and this lane's channels.
template <int KEYS, int CHANNELS>
__device__ __forceinline__ void multiply_values(
    const float* weights, const float* values, int row, int group, float (&sum)[QUERIES_PER_LANE][CHANNELS]) {
    constexpr int WIDTH = CHANNELS * LANES_PER_QUERY, N = VALUES_A_LOAD<CHANNELS>;
#pragma unroll 2
    for (int key = 0; key < KEYS; key += 4) {
        float left[QUERIES_PER_LANE][4], right[4][CHANNELS];
#pragma unroll
        for (int i = 0; i < QUERIES_PER_LANE; ++i) load_few<4>(weights + weight_index<KEYS>(row + 8 * i, key), left[i]);
#pragma unroll
        for (int c = 0; c < 4; ++c) {
#pragma unroll
            for (int m = 0; m < CHANNELS; m += N)
                load_few<N>(values + (key + c) * WIDTH + channel<CHANNELS>(group, m), right[c] + m);
#pragma unroll
            for (int i = 0; i < QUERIES_PER_LANE; ++i) {
#pragma unroll
                for (int m = 0; m < CHANNELS; ++m) sum[i][m] += left[i][c] * right[c][m];
            }
        }
    }
}

/// Online softmax, in powers of two, of a lane's queries. `total` covers this lane's keys only.
template <int CHANNELS>
struct Softmax {
    float running_max[QUERIES_PER_LANE], total[QUERIES_PER_LANE] = {}, sum[QUERIES_PER_LANE][CHANNELS] = {};

    __device__ __forceinline__ Softmax() {
#pragma unroll
        for (int i = 0; i < QUERIES_PER_LANE; ++i) running_max[i] = NO_SCORE;
    }

    /// Exponentiate the scores in place, and rescale the sums to the new running maxima.
    template <int N>
    __device__ __forceinline__ void exponentiate(float (&score)[QUERIES_PER_LANE][N]) {
#pragma unroll
        for (int i = 0; i < QUERIES_PER_LANE; ++i) {
            float new_max = running_max[i];
#pragma unroll
            for (int j = 0; j < N; ++j) new_max = fmaxf(new_max, score[i][j]);
#pragma unroll
            for (int lanes = 2; lanes < WARP; lanes *= 2) new_max = fmaxf(new_max, __shfl_xor_sync(ALL_LANES, new_max, lanes));
            const float factor = exp2f(running_max[i] - new_max);
            running_max[i] = new_max;
            total[i] *= factor;
#pragma unroll
            for (int m = 0; m < CHANNELS; ++m) sum[i][m] *= factor;
#pragma unroll
            for (int j = 0; j < N; ++j) {
                // in a row without a visible key so far these are ones, which are rescaled to zero later
                score[i][j] = exp2f(score[i][j] - new_max);
                total[i] += score[i][j];
            }
        }
    }
};

/// Grid: (H, time / 64 rounded up, B), 4 warps; blocks with the most keys start first. Arguments and result as in
/// `attention_rows`. Shared memory: tiles of 64 x WIDTH, 2 x KEYS x WIDTH and 64 x KEYS floats.
template <int WIDTH, int KEYS>
__global__ void __launch_bounds__(WARPS * WARP, WIDTH <= 64 ? 3 : 2) attention_tiled(
    const float* __restrict__ query, const float* __restrict__ keys, const float* __restrict__ values,
    const unsigned char* __restrict__ is_real, const float* __restrict__ slopes, float* __restrict__ context,
    const int* __restrict__ start, int time, int heads, int head_width, int head_stride, int capacity, double scale) {
    DYNAMIC_SHARED(float, query_tile);
    constexpr int N = KEYS / LANES_PER_QUERY, CHANNELS = WIDTH / LANES_PER_QUERY;
    float *const key_tile = query_tile + QUERIES * WIDTH, *const value_tile = key_tile + KEYS * WIDTH;
    float* const weight_tile = value_tile + KEYS * WIDTH;
    const int group = threadIdx.x % WARP / 2, first_row = threadIdx.x / WARP * 2 + threadIdx.x % 2;
    const auto [head, batch, count, row_stride, first_column, last, row] = query_block<QUERIES>(*start, time, heads, head_width);
    const CacheShape cache{heads, head_width, head_stride, capacity};
    keys += cache.offset(batch, head, 0);
    values += cache.offset(batch, head, 0);
    if (is_real) is_real += size_t(batch) * capacity;
    const float slope = slopes[head] * LOG2_E;

    copy_tile<WIDTH, KEYS, true>(key_tile, keys, head_stride, 0, last);
    store_queries<WIDTH>(query_tile, query + row, count, row_stride, head_width, float(scale) * LOG2_E);
    Softmax<CHANNELS> state;
    for (int first = 0; first < last; first += KEYS) {
        wait_for_copies<0>();
        __syncthreads();  // the keys have arrived; the previous values and probabilities may be overwritten
        copy_tile<WIDTH, KEYS, false>(value_tile, values, head_stride, first, last);
        float score[QUERIES_PER_LANE][N];
        multiply_keys<WIDTH>(query_tile, key_tile, first_row, group, score);
        const int key = first + group, column = first_column + first_row;
        const float distance = float(key - column);
#pragma unroll
        for (int i = 0; i < QUERIES_PER_LANE; ++i) {
#pragma unroll
            for (int j = 0; j < N; ++j) score[i][j] += slope * (distance + float(LANES_PER_QUERY * j - 8 * i));
        }
        if (is_real || first + KEYS > first_column + 1) {  // otherwise every key is visible to every query of the block
#pragma unroll
            for (int j = 0; j < N; ++j) {
                const int of = key + LANES_PER_QUERY * j;
                const bool exists = of < last && !(is_real && !is_real[of]);
#pragma unroll
                for (int i = 0; i < QUERIES_PER_LANE; ++i) score[i][j] = exists && of <= column + 8 * i ? score[i][j] : NO_SCORE;
            }
        }
        state.exponentiate(score);
#pragma unroll
        for (int i = 0; i < QUERIES_PER_LANE; ++i) {
#pragma unroll
            for (int j = 0; j < N; ++j) weight_tile[weight_index<KEYS>(first_row + 8 * i, group + LANES_PER_QUERY * j)] = score[i][j];
        }
        wait_for_copies<0>();
        __syncthreads();  // the values and probabilities are there; the keys may be overwritten
        if (first + KEYS < last) copy_tile<WIDTH, KEYS, true>(key_tile, keys, head_stride, first + KEYS, last);
        multiply_values<KEYS>(weight_tile, value_tile, first_row, group, state.sum);
    }
#pragma unroll
    for (int i = 0; i < QUERIES_PER_LANE; ++i) {
        float all = state.total[i];
#pragma unroll
        for (int lanes = 2; lanes < WARP; lanes *= 2) all += __shfl_xor_sync(ALL_LANES, all, lanes);
        const int query_row = first_row + 8 * i;
        if (query_row >= count) continue;
        const float inverse = is_real && !is_real[first_column + query_row] ? 0.f : 1.f / all;
#pragma unroll
        for (int m = 0; m < CHANNELS; ++m) {
            const int k = channel<CHANNELS>(group, m);
            if (k < head_width) context[row + size_t(query_row) * row_stride + k] = state.sum[i][m] * inverse;
        }
    }
}
