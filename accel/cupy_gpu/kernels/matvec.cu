// Products of weight matrices with few rows, each with all that surrounds it: a decode step is bound by the bytes of the weights,
// so each is read once, 16 bytes a lane, and serves every row. All sums in float32; nothing is rounded inside (NUM-2).
//
// A group of `splits` warps computes OUTPUTS outputs of up to ROWS rows and divides the inputs between its warps (split-K), so
// that narrow matrices fill the chip as well. A block of 8 warps has 8 / splits groups and goes on with further outputs until all
// are done. ROWS is a power of two.
//
// WHOLE: widths and outputs are multiples of 8, so that every row starts on 16 bytes (see `load_row`).
//
// weight (outputs, weight_stride) with zeros beyond the width; bias (outputs); x (rows, width). Grid: any number of blocks.
// Shared memory: 8 ROWS OUTPUTS + 2 ROWS floats.

constexpr int WARPS = 8;

/// Blocks of a multiprocessor for which the compiler must leave registers.
template <int ROWS>
constexpr int BLOCKS = ROWS > 4 ? 1 : 2;

/// Float32 activations as they are.
template <bool WHOLE>
struct Plain {
    const float* x;
    int width;

    template <int N>
    __device__ __forceinline__ void load(int row, int k, float (&to)[N]) const {
        load_row<N>(WHOLE, x + size_t(row) * width, k, width, to);
    }
};

/// Hidden states, normalised as they are read. With a null gain: as they are. ROUNDED: what the norm gives is rounded to T, as the
/// final norm's result is.
template <class T, int ROWS, bool WHOLE, bool ROUNDED>
struct Normed {
    const T* x;
    const float *gain, *shift, *moments;  // moments: means, then 1 / deviations, in shared memory
    int width;

    __device__ __forceinline__ float normed(float value, int row, float scale, float offset) const {
        const float y = (value - moments[row]) * moments[ROWS + row] * scale + offset;
        return ROUNDED ? widen(round_to<T>(y)) : y;
    }

    /// Element n of the residual: LN(x), or x without a gain. Clause: MOD-3.
    __device__ __forceinline__ float at(int row, int n) const {
        const float value = widen(x[size_t(row) * width + n]);
        return gain ? normed(value, row, gain[n], shift[n]) : value;
    }

    template <int N>
    __device__ __forceinline__ void load(int row, int k, float (&to)[N]) const {
        load_row<N>(WHOLE, x + size_t(row) * width, k, width, to);
        if (!gain) return;
        float scale[N], offset[N];
        load_row<N>(WHOLE, gain, k, width, scale);
        load_row<N>(WHOLE, shift, k, width, offset);
#pragma unroll
        for (int j = 0; j < N; ++j) to[j] = normed(to[j], row, scale[j], offset[j]);
    }
};

/// `x` normalised; the block computes the moments, `shared` (2 ROWS floats behind the scratch space) keeps them.
template <bool ROUNDED, int ROWS, int OUTPUTS, bool WHOLE, class T>
__device__ __forceinline__ Normed<T, ROWS, WHOLE, ROUNDED> normed(
    const T* x, const float* gain, const float* shift, double epsilon, int rows, int width, float* scratch) {
    float* const kept = scratch + WARPS * ROWS * OUTPUTS;
    if (gain) {
        float mean[ROWS], inverse[ROWS];
        moments(WHOLE, x, rows, width, epsilon, scratch, mean, inverse);
#pragma unroll
        for (int r = 0; r < ROWS; ++r) {
            if (threadIdx.x != 0) break;
            kept[r] = mean[r];
            kept[ROWS + r] = inverse[r];
        }
        __syncthreads();
    }
    return {x, gain, shift, kept, width};
}

/// sum[o][r] = this lane's part of output first + o of row r.
template <int ROWS, int OUTPUTS, class T, class Input>
__device__ __forceinline__ void lane_products(
    const Input& input, const T* weight, int stride, int rows, int width, int first, int outputs, int splits,
    float (&sum)[OUTPUTS][ROWS]) {
    constexpr int N = PER_LOAD<T>, UNROLL = ROWS > 2 ? 1 : 2;
#pragma unroll
    for (int i = 0; i < OUTPUTS * ROWS; ++i) sum[i / ROWS][i % ROWS] = 0.f;
    const int lane = threadIdx.x / WARP % splits * WARP + threadIdx.x % WARP;
#pragma unroll UNROLL
    for (int k = lane * N; k < width; k += splits * WARP * N) {
        uint4 bits[OUTPUTS];
#pragma unroll
        for (int o = 0; o < OUTPUTS; ++o) bits[o] = load_16_once(weight + size_t(min(first + o, outputs - 1)) * stride + k);
        float w[OUTPUTS][N];
#pragma unroll
        for (int o = 0; o < OUTPUTS; ++o) unpack<T>(bits[o], w[o]);
#pragma unroll
        for (int r = 0; r < ROWS; ++r) {
            if (r >= rows) break;
            float x[N];
            input.load(r, k, x);
#pragma unroll
            for (int o = 0; o < OUTPUTS; ++o) {
#pragma unroll
                for (int j = 0; j < N; ++j) sum[o][r] += w[o][j] * x[j];
            }
        }
    }
}

/// store(row, n, sum of the products) for every row and output, each by one thread; thread i only ever has rows i % ROWS.
template <int ROWS, int OUTPUTS, class T, class Input, class Store>
__device__ __forceinline__ void products(
    const Input& input, const T* weight, int stride, int rows, int width, int outputs, int splits, float* scratch,
    const Store& store) {
    constexpr int SUMS = OUTPUTS * ROWS;
    const int warp = threadIdx.x / WARP, groups = WARPS / splits;
    for (int base = blockIdx.x * groups * OUTPUTS; base < outputs; base += gridDim.x * groups * OUTPUTS) {
        float sum[OUTPUTS][ROWS];
        lane_products<ROWS, OUTPUTS>(
            input, weight, stride, rows, width, base + warp / splits * OUTPUTS, outputs, splits, sum);
#pragma unroll
        for (int i = 0; i < SUMS; ++i) {
            const float all = warp_sum(sum[i / ROWS][i % ROWS]);
            if (threadIdx.x % WARP == 0) scratch[warp * SUMS + i] = all;
        }
        __syncthreads();
        for (int i = threadIdx.x; i < groups * SUMS; i += blockDim.x) {
            const int group = i / SUMS, row = i % ROWS, n = base + i / ROWS;
            float all = 0.f;
            for (int part = 0; part < splits; ++part) all += scratch[(group * splits + part) * SUMS + i % SUMS];
            if (row < rows && n < outputs) store(row, n, all);
        }
        __syncthreads();  // the scratch space may be written again
    }
}

/// LN(x) W^T + b, split per head: queries (rows, H K), keys and values rounded into the cache at column *start + t.
/// Row b * time + t. Clauses: ATT-1, ATT-2, NUM-2, KVC-1.
template <class T, int ROWS, int OUTPUTS, bool WHOLE>
__global__ void __launch_bounds__(256, BLOCKS<ROWS>) qkv_matvec(
    const T* __restrict__ x, const float* __restrict__ gain, const float* __restrict__ shift, double epsilon,
    const T* __restrict__ weight, int weight_stride, const float* __restrict__ bias, float* __restrict__ query,
    T* __restrict__ keys, T* __restrict__ values, const int* __restrict__ start, int rows, int width, int time, int heads,
    int head_width, int head_stride, int capacity, int splits) {
    DYNAMIC_SHARED(float, scratch);
    const auto input = normed<false, ROWS, OUTPUTS, WHOLE>(x, gain, shift, epsilon, rows, width, scratch);
    const CacheShape cache{heads, head_width, head_stride, capacity};
    products<ROWS, OUTPUTS>(input, weight, weight_stride, rows, width, 3 * width, splits, scratch, [&](int row, int n, float y) {
        store_projected<T>(query, keys, values, cache, row, row / time, *start + row % time, n, y + bias[n]);
    });
}

/// out (rows, outputs) = gelu(LN(x) W^T + b), not rounded. Clauses: MLP-1 ... MLP-3.
template <class T, int ROWS, int OUTPUTS, bool WHOLE>
__global__ void __launch_bounds__(256, BLOCKS<ROWS>) gelu_matvec(
    const T* __restrict__ x, const float* __restrict__ gain, const float* __restrict__ shift, double epsilon,
    const T* __restrict__ weight, int weight_stride, const float* __restrict__ bias, float* __restrict__ out, int rows,
    int width, int outputs, int splits) {
    DYNAMIC_SHARED(float, scratch);
    const auto input = normed<false, ROWS, OUTPUTS, WHOLE>(x, gain, shift, epsilon, rows, width, scratch);
    products<ROWS, OUTPUTS>(input, weight, weight_stride, rows, width, outputs, splits, scratch, [&](int row, int n, float y) {
        out[size_t(row) * outputs + n] = gelu(y + bias[n]);
    });
}

/// out (rows, outputs) = residual + (in W^T + b), rounded once; in (rows, width); the residual is x (rows, outputs), or LN(x) where
/// a gain is given. Clauses: ATT-9, ATT-10, MLP-4, MOD-3.
template <class T, int ROWS, int OUTPUTS, bool WHOLE>
__global__ void __launch_bounds__(256, BLOCKS<ROWS>) residual_matvec(
    const float* __restrict__ in, const T* __restrict__ weight, int weight_stride, const float* __restrict__ bias,
    const T* __restrict__ x, const float* __restrict__ gain, const float* __restrict__ shift, double epsilon,
    T* __restrict__ out, int rows, int width, int outputs, int splits) {
    DYNAMIC_SHARED(float, scratch);
    const auto residual = normed<false, ROWS, OUTPUTS, WHOLE>(x, gain, shift, epsilon, rows, outputs, scratch);
    const Plain<WHOLE> input{in, width};
    products<ROWS, OUTPUTS>(input, weight, weight_stride, rows, width, outputs, splits, scratch, [&](int row, int n, float y) {
        out[size_t(row) * outputs + n] = round_to<T>(residual.at(row, n) + (y + bias[n]));
    });
}

/// logits (rows, outputs) = LN(x), rounded, times the head; of x itself with a null gain. If `broken` is not null, it becomes
/// 1 where a logit is NaN or infinite, and each block leaves for each row the best of its tokens that are not forbidden (see
/// choice.cu), in best_score and best_token (rows, gridDim.x). Clauses: MOD-4 ... MOD-6.
template <class T, int ROWS, int OUTPUTS, bool WHOLE>
__global__ void __launch_bounds__(256, BLOCKS<ROWS>) head_matvec(
    const T* __restrict__ x, const float* __restrict__ gain, const float* __restrict__ shift, double epsilon,
    const T* __restrict__ weight, int weight_stride, float* __restrict__ logits,
    const unsigned char* __restrict__ forbidden, float* __restrict__ best_score, int* __restrict__ best_token, int* broken, int rows, int width, int outputs, int splits) {
    DYNAMIC_SHARED(float, scratch);
    __shared__ Best found[WARPS * WARP];
    const auto input = normed<true, ROWS, OUTPUTS, WHOLE>(x, gain, shift, epsilon, rows, width, scratch);
    Best best = no_token();
    products<ROWS, OUTPUTS>(input, weight, weight_stride, rows, width, outputs, splits, scratch, [&](int row, int n, float y) {
        logits[size_t(row) * outputs + n] = y;
        if (!broken) return;
        if (!(fabsf(y) <= -LOWEST)) *broken = 1;
        if (!(forbidden && forbidden[n])) best.offer(y, n);
    });
    if (!broken) return;
    found[threadIdx.x] = best;
    __syncthreads();
    if (threadIdx.x >= rows) return;
    for (int i = threadIdx.x; i < WARPS * WARP; i += ROWS) best.offer(found[i].score, found[i].token);
    best_score[size_t(threadIdx.x) * gridDim.x + blockIdx.x] = best.score;
    best_token[size_t(threadIdx.x) * gridDim.x + blockIdx.x] = best.token;
}
