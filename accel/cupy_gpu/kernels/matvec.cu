// Matrix-vector products (gemv) of weight matrices and few rows, fused with the operations around them. A decoding step
// is bound by memory bandwidth, so each weight is read once, 16 bytes per lane, for all rows of a thread block. All
// sums are float32; nothing is rounded inside a kernel (NUM-2).
//
// More than ROWS rows are divided evenly into gridDim.x row groups, and thread block (x, y) has row group x. Blocks
// start in order of x first, so row groups read the same weights at about the same time, and all but one should hit the
// L2 cache.
//
// A group of `splits` warps computes OUTPUTS outputs of up to ROWS rows and divides the inputs among its warps
// (split-K), so that narrow matrices occupy all SMs as well. A thread block of 8 warps has 8 / splits groups and loops
// over further outputs until all are done. ROWS is a power of two.
//
// WHOLE: widths and outputs are multiples of 8, so every row is 16-byte aligned (see `load_row`).
//
// weight (outputs, weight_stride) with zeros beyond the width; bias (outputs); x (rows, width). Grid: (row groups, any
// number). Shared memory: 8 ROWS OUTPUTS + 2 ROWS floats.

constexpr int WARPS = 8;

/// Thread blocks per SM for which the compiler must leave registers.
template <int ROWS>
constexpr int BLOCKS = ROWS > 2 ? 1 : 2;

/// Loads that each lane keeps in flight per output: at least 32 KB per SM, which is the latency-bandwidth product of an
/// SM's share of the memory bandwidth of a large GPU.
template <int ROWS>
constexpr int DEPTH = ROWS > 2 ? 4 : 2;

/// Weight matrix (outputs, stride) of a product. A group of `splits` warps computes an output.
template <class T>
struct Matrix {
    const T* weight;
    int stride, width, outputs, splits;
};

/// The weights that a lane reads for OUTPUTS outputs from `first` on: in each turn 16 bytes per output, at begin, begin
/// + apart, ...
template <int OUTPUTS, class T>
struct Lane {
    const uint4* weight;
    unsigned row[OUTPUTS];  // offset of an output's weights, in units of 16 bytes
    int width, begin, apart;

    __device__ __forceinline__ Lane(const Matrix<T>& matrix, int first)
        : weight(reinterpret_cast<const uint4*>(matrix.weight)), width(matrix.width),
          begin((threadIdx.x / WARP % matrix.splits * WARP + threadIdx.x % WARP) * PER_LOAD<T>),
          apart(matrix.splits * WARP * PER_LOAD<T>) {
#pragma unroll
        for (int o = 0; o < OUTPUTS; ++o) row[o] = unsigned(min(first + o, matrix.outputs - 1)) * (matrix.stride / PER_LOAD<T>);
    }

    __device__ __forceinline__ void load(int k, uint4 (&to)[OUTPUTS]) const {
#pragma unroll
        for (int o = 0; o < OUTPUTS; ++o)
            to[o] = k < width ? load_16_once(weight + (row[o] + k / PER_LOAD<T>)) : make_uint4(0, 0, 0, 0);
    }

    template <int TURNS>
    __device__ __forceinline__ void load_first(uint4 (&to)[TURNS][OUTPUTS]) const {
#pragma unroll
        for (int turn = 0; turn < TURNS; ++turn) load(begin + turn * apart, to[turn]);
    }
};

/// The weights of a lane for the outputs of its thread block from `base` on. The loads of its first turns are in
/// flight.
template <int ROWS, int OUTPUTS, class T>
struct Prefetched {
    Lane<OUTPUTS, T> lane;
    uint4 bits[DEPTH<ROWS>][OUTPUTS];

    __device__ __forceinline__ Prefetched(const Matrix<T>& matrix, int base)
        : lane(matrix, base + int(threadIdx.x) / WARP / matrix.splits * OUTPUTS) {
        lane.load_first(bits);
    }
};

/// First statement of every gemv kernel (programmatic dependent launch): load the first weights into registers and
/// prefetch the following ones and those of the next product into the L2 cache, then wait for the preceding kernel.
template <int ROWS, int OUTPUTS, class T>
__device__ __forceinline__ Prefetched<ROWS, OUTPUTS, T> start_early(const Matrix<T>& matrix, const NextWeights& next) {
    const int warp = threadIdx.x / WARP, base = blockIdx.y * (WARPS / matrix.splits) * OUTPUTS;
    let_next_start();
    const Prefetched<ROWS, OUTPUTS, T> prefetched(matrix, base);
    prefetch_weights<OUTPUTS>(
        matrix.weight, matrix.stride, base + warp / matrix.splits * OUTPUTS, matrix.outputs, DEPTH<ROWS> * prefetched.lane.apart,
        matrix.width, warp % matrix.splits);
    if (blockIdx.x == 0) next.prefetch(blockIdx.y, gridDim.y);
    wait_for_previous();
    return prefetched;
}

/// The rows of this thread block.
struct RowGroup {
    int first, rows;
};
__device__ __forceinline__ RowGroup row_group(int rows) {
    const int groups = gridDim.x, each = (rows + groups - 1) / groups, first = blockIdx.x * each;
    return {first, min(each, rows - first)};
}

/// Input of a product: float32 activations.
template <bool WHOLE>
struct Plain {
    const float* x;
    int width;

    template <int N>
    __device__ __forceinline__ void load(int row, int k, float (&to)[N]) const {
        load_row<N>(WHOLE, x + size_t(row) * width, k, width, to);
    }
};

/// Input of a product: hidden states, normalised on the fly, or unchanged if `ln_weight` is null. ROUNDED: the norm is
/// rounded to T, as the final norm is.
template <class T, int ROWS, bool WHOLE, bool ROUNDED>
struct Normed {
    const T* x;
    const float *ln_weight, *ln_bias, *moments;  // moments: means, then 1 / standard deviations, in shared memory
    int width;

    __device__ __forceinline__ float normed(float value, int row, float scale, float offset) const {
        const float y = (value - moments[row]) * moments[ROWS + row] * scale + offset;
        return ROUNDED ? widen(round_to<T>(y)) : y;
    }

    /// Element n of the residual: LN(x), or x if `ln_weight` is null. Clause: MOD-3.
    __device__ __forceinline__ float at(int row, int n) const {
        const float value = widen(x[size_t(row) * width + n]);
        return ln_weight ? normed(value, row, ln_weight[n], ln_bias[n]) : value;
    }

    template <int N>
    __device__ __forceinline__ void load(int row, int k, float (&to)[N]) const {
        load_row<N>(WHOLE, x + size_t(row) * width, k, width, to);
        if (!ln_weight) return;
        float scale[N], offset[N];
        load_row<N>(WHOLE, ln_weight, k, width, scale);
        load_row<N>(WHOLE, ln_bias, k, width, offset);
#pragma unroll
        for (int j = 0; j < N; ++j) to[j] = normed(to[j], row, scale[j], offset[j]);
    }
};

/// Return `x` as a normalised input. The thread block computes the moments and stores them behind the scratch space (2
/// ROWS floats).
template <bool ROUNDED, int ROWS, int OUTPUTS, bool WHOLE, class T>
__device__ __forceinline__ Normed<T, ROWS, WHOLE, ROUNDED> normed(
    const T* x, const float* ln_weight, const float* ln_bias, double epsilon, int rows, int width, float* scratch) {
    float* const shared_moments = scratch + WARPS * ROWS * OUTPUTS;
    if (ln_weight) {
        float mean[ROWS], inverse[ROWS];
        moments(WHOLE, x, rows, width, epsilon, scratch, mean, inverse);
#pragma unroll
        for (int r = 0; r < ROWS; ++r) {
            if (threadIdx.x != 0) break;
            shared_moments[r] = mean[r];
            shared_moments[ROWS + r] = inverse[r];
        }
        __syncthreads();
    }
    return {x, ln_weight, ln_bias, shared_moments, width};
}

/// sum[o][r] = this lane's partial sum of output o of its warp and row r. `prefetched` is a rolling buffer: once the
/// weights of a turn are used, the loads of a later turn replace them.
template <int ROWS, int OUTPUTS, class T, class Input>
__device__ __forceinline__ void lane_products(
    const Input& input, int rows, Prefetched<ROWS, OUTPUTS, T>& prefetched, float (&sum)[OUTPUTS][ROWS]) {
    constexpr int N = PER_LOAD<T>, TURNS = DEPTH<ROWS>;
    const Lane<OUTPUTS, T>& lane = prefetched.lane;
#pragma unroll
    for (int i = 0; i < OUTPUTS * ROWS; ++i) sum[i / ROWS][i % ROWS] = 0.f;
    for (int begin = lane.begin; begin < lane.width; begin += TURNS * lane.apart) {
#pragma unroll
        for (int turn = 0; turn < TURNS; ++turn) {
            const int k = begin + turn * lane.apart;
            if (k >= lane.width) break;
            float w[OUTPUTS][N];
#pragma unroll
            for (int o = 0; o < OUTPUTS; ++o) unpack<T>(prefetched.bits[turn][o], w[o]);
            lane.load(k + TURNS * lane.apart, prefetched.bits[turn]);
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
}

/// Call store(row, n, sum) for every row of the row group and every output, each in one thread; thread i only has rows
/// i % ROWS. `prefetched` is the result of `start_early`.
template <int ROWS, int OUTPUTS, class T, class Input, class Store>
__device__ __forceinline__ void products(
    const Input& input, const Matrix<T>& matrix, int rows, Prefetched<ROWS, OUTPUTS, T>& prefetched, float* scratch,
    const Store& store) {
    constexpr int SUMS = OUTPUTS * ROWS;
    const int warp = threadIdx.x / WARP, splits = matrix.splits, groups = WARPS / splits, outputs = matrix.outputs;
    const int apart = gridDim.y * groups * OUTPUTS;
    for (int base = blockIdx.y * groups * OUTPUTS; base < outputs; base += apart) {
        float sum[OUTPUTS][ROWS];
        lane_products(input, rows, prefetched, sum);
        if (base + apart < outputs) prefetched = Prefetched<ROWS, OUTPUTS, T>(matrix, base + apart);
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

/// LN(x) W^T + b, split per head into queries (rows, H K), and keys and values, which are rounded into the cache at
/// column *start + t. Row b * time + t is position t of sequence b. Clauses: ATT-1, ATT-2, NUM-2, KVC-1.
template <class T, int ROWS, int OUTPUTS, bool WHOLE>
__global__ void __launch_bounds__(256, BLOCKS<ROWS>) qkv_matvec(
    const T* x, const float* __restrict__ ln_weight, const float* __restrict__ ln_bias, double epsilon, const T* __restrict__ weight,
    int weight_stride, const float* __restrict__ bias, float* query, T* keys, T* values, const int* start, int rows, int width,
    int time, int heads, int head_width, int head_stride, int capacity, int splits, const void* next, int next_loads) {
    DYNAMIC_SHARED(float, scratch);
    const Matrix<T> matrix{weight, weight_stride, width, 3 * width, splits};
    auto prefetched = start_early<ROWS, OUTPUTS>(matrix, {next, next_loads});
    const RowGroup group = row_group(rows);
    const T* const from = x + size_t(group.first) * width;
    const auto input = normed<false, ROWS, OUTPUTS, WHOLE>(from, ln_weight, ln_bias, epsilon, group.rows, width, scratch);
    const CacheShape cache{heads, head_width, head_stride, capacity};
    products<ROWS, OUTPUTS>(input, matrix, group.rows, prefetched, scratch, [&](int r, int n, float y) {
        const int row = group.first + r;
        store_projected<T>(query, keys, values, cache, row, row / time, *start + row % time, n, y + bias[n]);
    });
}

/// out (rows, outputs) = gelu(LN(x) W^T + b), unrounded. Clauses: MLP-1 ... MLP-3.
template <class T, int ROWS, int OUTPUTS, bool WHOLE>
__global__ void __launch_bounds__(256, BLOCKS<ROWS>) gelu_matvec(
    const T* x, const float* __restrict__ ln_weight, const float* __restrict__ ln_bias, double epsilon, const T* __restrict__ weight,
    int weight_stride, const float* __restrict__ bias, float* out, int rows, int width, int outputs, int splits, const void* next, int next_loads) {
    DYNAMIC_SHARED(float, scratch);
    const Matrix<T> matrix{weight, weight_stride, width, outputs, splits};
    auto prefetched = start_early<ROWS, OUTPUTS>(matrix, {next, next_loads});
    const RowGroup group = row_group(rows);
    const T* const from = x + size_t(group.first) * width;
    float* const to = out + size_t(group.first) * outputs;
    const auto input = normed<false, ROWS, OUTPUTS, WHOLE>(from, ln_weight, ln_bias, epsilon, group.rows, width, scratch);
    products<ROWS, OUTPUTS>(input, matrix, group.rows, prefetched, scratch, [&](int r, int n, float y) {
        to[size_t(r) * outputs + n] = gelu(y + bias[n]);
    });
}

/// out (rows, outputs) = residual + (in W^T + b), rounded once; in (rows, width). The residual is LN(x), or x (rows,
/// outputs) if `ln_weight` is null. Clauses: ATT-9, ATT-10, MLP-4, MOD-3.
template <class T, int ROWS, int OUTPUTS, bool WHOLE>
__global__ void __launch_bounds__(256, BLOCKS<ROWS>) residual_matvec(
    const float* in, const T* __restrict__ weight, int weight_stride, const float* __restrict__ bias, const T* x,
    const float* __restrict__ ln_weight, const float* __restrict__ ln_bias, double epsilon, T* out, int rows, int width, int outputs,
    int splits, const void* next, int next_loads) {
    DYNAMIC_SHARED(float, scratch);
    const Matrix<T> matrix{weight, weight_stride, width, outputs, splits};
    auto prefetched = start_early<ROWS, OUTPUTS>(matrix, {next, next_loads});
    const RowGroup group = row_group(rows);
    const size_t skipped = size_t(group.first) * outputs;
    T* const to = out + skipped;
    const auto residual = normed<false, ROWS, OUTPUTS, WHOLE>(x + skipped, ln_weight, ln_bias, epsilon, group.rows, outputs, scratch);
    const Plain<WHOLE> input{in + size_t(group.first) * width, width};
    products<ROWS, OUTPUTS>(input, matrix, group.rows, prefetched, scratch, [&](int r, int n, float y) {
        to[size_t(r) * outputs + n] = round_to<T>(residual.at(r, n) + (y + bias[n]));
    });
}

/// logits (rows, outputs) = LN(x), rounded, times the LM head, or x times the LM head if `ln_weight` is null. If
/// `broken` is not null, *broken is set to 1 if a logit is NaN or infinite, and each thread block writes, for each row,
/// the best of its tokens that are not forbidden (see choice.cu) to best_score and best_token (rows, gridDim.y).
/// Clauses: MOD-4 ... MOD-6.
template <class T, int ROWS, int OUTPUTS, bool WHOLE>
__global__ void __launch_bounds__(256, BLOCKS<ROWS>) head_matvec(
    const T* x, const float* __restrict__ ln_weight, const float* __restrict__ ln_bias, double epsilon, const T* __restrict__ weight,
    int weight_stride, float* logits, const unsigned char* __restrict__ forbidden, float* best_score, int* best_token, int* broken,
    int rows, int width, int outputs, int splits) {
    DYNAMIC_SHARED(float, scratch);
    __shared__ Best best_of_thread[WARPS * WARP];
    const Matrix<T> matrix{weight, weight_stride, width, outputs, splits};
    auto prefetched = start_early<ROWS, OUTPUTS>(matrix, {nullptr, 0});
    const RowGroup group = row_group(rows);
    const T* const from = x + size_t(group.first) * width;
    float* const to = logits + size_t(group.first) * outputs;
    const auto input = normed<true, ROWS, OUTPUTS, WHOLE>(from, ln_weight, ln_bias, epsilon, group.rows, width, scratch);
    Best best = no_token();
    products<ROWS, OUTPUTS>(input, matrix, group.rows, prefetched, scratch, [&](int r, int n, float y) {
        to[size_t(r) * outputs + n] = y;
        if (!broken) return;
        if (!(fabsf(y) <= -LOWEST)) *broken = 1;
        if (!(forbidden && forbidden[n])) best.offer(y, n);
    });
    if (!broken) return;
    best_of_thread[threadIdx.x] = best;
    __syncthreads();
    if (threadIdx.x >= group.rows) return;
    for (int i = threadIdx.x; i < WARPS * WARP; i += ROWS) best.offer(best_of_thread[i].score, best_of_thread[i].token);
    const size_t part = size_t(group.first + threadIdx.x) * gridDim.y + blockIdx.y;
    best_score[part] = best.score;
    best_token[part] = best.token;
}
