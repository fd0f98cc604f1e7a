// Products of weight matrices with few rows, each with all that surrounds it: a decode step is bound by the bytes of the weights,
// so each is read once, 16 bytes a lane, and serves every row of a block. All sums in float32; nothing is rounded inside (NUM-2).
//
// More than ROWS rows are cut into gridDim.x row groups, as even as they come, and block (x, y) has row group x. Blocks start in
// the order of x first: row groups meet the same weights at about the same time, and all but one should find them in the L2 cache.
//
// A group of `splits` warps computes OUTPUTS outputs of up to ROWS rows and divides the inputs between its warps (split-K), so
// that narrow matrices fill the chip as well. A block of 8 warps has 8 / splits groups and goes on with further outputs until all
// are done. ROWS is a power of two.
//
// WHOLE: widths and outputs are multiples of 8, so that every row starts on 16 bytes (see `load_row`).
//
// weight (outputs, weight_stride) with zeros beyond the width; bias (outputs); x (rows, width). Grid: (row groups, any number).
// Shared memory: 8 ROWS OUTPUTS + 2 ROWS floats.

constexpr int WARPS = 8;

/// Blocks of a multiprocessor for which the compiler must leave registers.
template <int ROWS>
constexpr int BLOCKS = ROWS > 2 ? 1 : 2;

/// Turns of a lane whose weights are on their way at once: 32 KB a multiprocessor and more, what its share of the bandwidth of a
/// large chip delivers within the latency of its memory.
template <int ROWS>
constexpr int DEPTH = ROWS > 2 ? 4 : 2;

/// Weights (outputs, stride) of a product; a group of `splits` warps computes an output.
template <class T>
struct Matrix {
    const T* weight;
    int stride, width, outputs, splits;
};

/// The weights that a lane reads for the outputs from `first` on: a turn is 16 bytes of each, from numbers begin, begin + apart, ...
template <int OUTPUTS, class T>
struct Lane {
    const uint4* weight;
    unsigned row[OUTPUTS];  // where an output's weights begin, in loads of 16 bytes
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

/// The weights of a lane for the outputs of its block that begin at `base`, those of its first turns on their way.
template <int ROWS, int OUTPUTS, class T>
struct Ahead {
    Lane<OUTPUTS, T> lane;
    uint4 bits[DEPTH<ROWS>][OUTPUTS];

    __device__ __forceinline__ Ahead(const Matrix<T>& matrix, int base)
        : lane(matrix, base + int(threadIdx.x) / WARP / matrix.splits * OUTPUTS) {
        lane.load_first(bits);
    }
};

/// The head of every kernel here: the first weights travel, to registers and behind those to the L2 cache, until the kernel before
/// this one is done.
template <int ROWS, int OUTPUTS, class T>
__device__ __forceinline__ Ahead<ROWS, OUTPUTS, T> start_early(const Matrix<T>& matrix) {
    const int warp = threadIdx.x / WARP, base = blockIdx.y * (WARPS / matrix.splits) * OUTPUTS;
    let_next_start();
    const Ahead<ROWS, OUTPUTS, T> ahead(matrix, base);
    ask_for_weights<OUTPUTS>(
        matrix.weight, matrix.stride, base + warp / matrix.splits * OUTPUTS, matrix.outputs, DEPTH<ROWS> * ahead.lane.apart,
        matrix.width, warp % matrix.splits);
    wait_for_previous();
    return ahead;
}

/// The rows of this block.
struct RowGroup {
    int first, rows;
};
__device__ __forceinline__ RowGroup row_group(int rows) {
    const int groups = gridDim.x, each = (rows + groups - 1) / groups, first = blockIdx.x * each;
    return {first, min(each, rows - first)};
}

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

/// sum[o][r] = this lane's part of output o of its warp and row r. `ahead` takes the weights of later turns as those of the first
/// are multiplied.
template <int ROWS, int OUTPUTS, class T, class Input>
__device__ __forceinline__ void lane_products(
    const Input& input, int rows, Ahead<ROWS, OUTPUTS, T>& ahead, float (&sum)[OUTPUTS][ROWS]) {
    constexpr int N = PER_LOAD<T>, TURNS = DEPTH<ROWS>;
    const Lane<OUTPUTS, T>& lane = ahead.lane;
#pragma unroll
    for (int i = 0; i < OUTPUTS * ROWS; ++i) sum[i / ROWS][i % ROWS] = 0.f;
    for (int begin = lane.begin; begin < lane.width; begin += TURNS * lane.apart) {
#pragma unroll
        for (int turn = 0; turn < TURNS; ++turn) {
            const int k = begin + turn * lane.apart;
            if (k >= lane.width) break;
            float w[OUTPUTS][N];
#pragma unroll
            for (int o = 0; o < OUTPUTS; ++o) unpack<T>(ahead.bits[turn][o], w[o]);
            lane.load(k + TURNS * lane.apart, ahead.bits[turn]);
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

/// store(row, n, sum of the products) for every row of the row group and every output, each by one thread; thread i only ever has
/// rows i % ROWS. `ahead` is what `start_early` returned.
template <int ROWS, int OUTPUTS, class T, class Input, class Store>
__device__ __forceinline__ void products(
    const Input& input, const Matrix<T>& matrix, int rows, Ahead<ROWS, OUTPUTS, T>& ahead, float* scratch, const Store& store) {
    constexpr int SUMS = OUTPUTS * ROWS;
    const int warp = threadIdx.x / WARP, splits = matrix.splits, groups = WARPS / splits, outputs = matrix.outputs;
    const int apart = gridDim.y * groups * OUTPUTS;
    for (int base = blockIdx.y * groups * OUTPUTS; base < outputs; base += apart) {
        float sum[OUTPUTS][ROWS];
        lane_products(input, rows, ahead, sum);
        if (base + apart < outputs) ahead = Ahead<ROWS, OUTPUTS, T>(matrix, base + apart);
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
    const T* x, const float* __restrict__ gain, const float* __restrict__ shift, double epsilon, const T* __restrict__ weight,
    int weight_stride, const float* __restrict__ bias, float* query, T* keys, T* values, const int* start, int rows, int width,
    int time, int heads, int head_width, int head_stride, int capacity, int splits) {
    DYNAMIC_SHARED(float, scratch);
    const Matrix<T> matrix{weight, weight_stride, width, 3 * width, splits};
    auto ahead = start_early<ROWS, OUTPUTS>(matrix);
    const RowGroup group = row_group(rows);
    const T* const from = x + size_t(group.first) * width;
    const auto input = normed<false, ROWS, OUTPUTS, WHOLE>(from, gain, shift, epsilon, group.rows, width, scratch);
    const CacheShape cache{heads, head_width, head_stride, capacity};
    products<ROWS, OUTPUTS>(input, matrix, group.rows, ahead, scratch, [&](int r, int n, float y) {
        const int row = group.first + r;
        store_projected<T>(query, keys, values, cache, row, row / time, *start + row % time, n, y + bias[n]);
    });
}

/// out (rows, outputs) = gelu(LN(x) W^T + b), not rounded. Clauses: MLP-1 ... MLP-3.
template <class T, int ROWS, int OUTPUTS, bool WHOLE>
__global__ void __launch_bounds__(256, BLOCKS<ROWS>) gelu_matvec(
    const T* x, const float* __restrict__ gain, const float* __restrict__ shift, double epsilon, const T* __restrict__ weight,
    int weight_stride, const float* __restrict__ bias, float* out, int rows, int width, int outputs, int splits) {
    DYNAMIC_SHARED(float, scratch);
    const Matrix<T> matrix{weight, weight_stride, width, outputs, splits};
    auto ahead = start_early<ROWS, OUTPUTS>(matrix);
    const RowGroup group = row_group(rows);
    const T* const from = x + size_t(group.first) * width;
    float* const to = out + size_t(group.first) * outputs;
    const auto input = normed<false, ROWS, OUTPUTS, WHOLE>(from, gain, shift, epsilon, group.rows, width, scratch);
    products<ROWS, OUTPUTS>(input, matrix, group.rows, ahead, scratch, [&](int r, int n, float y) {
        to[size_t(r) * outputs + n] = gelu(y + bias[n]);
    });
}

/// out (rows, outputs) = residual + (in W^T + b), rounded once; in (rows, width); the residual is x (rows, outputs), or LN(x) where
/// a gain is given. Clauses: ATT-9, ATT-10, MLP-4, MOD-3.
template <class T, int ROWS, int OUTPUTS, bool WHOLE>
__global__ void __launch_bounds__(256, BLOCKS<ROWS>) residual_matvec(
    const float* in, const T* __restrict__ weight, int weight_stride, const float* __restrict__ bias, const T* x,
    const float* __restrict__ gain, const float* __restrict__ shift, double epsilon, T* out, int rows, int width, int outputs,
    int splits) {
    DYNAMIC_SHARED(float, scratch);
    const Matrix<T> matrix{weight, weight_stride, width, outputs, splits};
    auto ahead = start_early<ROWS, OUTPUTS>(matrix);
    const RowGroup group = row_group(rows);
    const size_t skipped = size_t(group.first) * outputs;
    T* const to = out + skipped;
    const auto residual = normed<false, ROWS, OUTPUTS, WHOLE>(x + skipped, gain, shift, epsilon, group.rows, outputs, scratch);
    const Plain<WHOLE> input{in + size_t(group.first) * width, width};
    products<ROWS, OUTPUTS>(input, matrix, group.rows, ahead, scratch, [&](int r, int n, float y) {
        to[size_t(r) * outputs + n] = round_to<T>(residual.at(r, n) + (y + bias[n]));
    });
}

/// logits (rows, outputs) = LN(x), rounded, times the head; of x itself with a null gain. If `broken` is not null, it becomes
/// 1 where a logit is NaN or infinite, and each block leaves for each row the best of its tokens that are not forbidden (see
/// choice.cu), in best_score and best_token (rows, gridDim.y). Clauses: MOD-4 ... MOD-6.
template <class T, int ROWS, int OUTPUTS, bool WHOLE>
__global__ void __launch_bounds__(256, BLOCKS<ROWS>) head_matvec(
    const T* x, const float* __restrict__ gain, const float* __restrict__ shift, double epsilon, const T* __restrict__ weight,
    int weight_stride, float* logits, const unsigned char* __restrict__ forbidden, float* best_score, int* best_token, int* broken,
    int rows, int width, int outputs, int splits) {
    DYNAMIC_SHARED(float, scratch);
    __shared__ Best found[WARPS * WARP];
    const Matrix<T> matrix{weight, weight_stride, width, outputs, splits};
    auto ahead = start_early<ROWS, OUTPUTS>(matrix);
    const RowGroup group = row_group(rows);
    const T* const from = x + size_t(group.first) * width;
    float* const to = logits + size_t(group.first) * outputs;
    const auto input = normed<true, ROWS, OUTPUTS, WHOLE>(from, gain, shift, epsilon, group.rows, width, scratch);
    Best best = no_token();
    products<ROWS, OUTPUTS>(input, matrix, group.rows, ahead, scratch, [&](int r, int n, float y) {
        to[size_t(r) * outputs + n] = y;
        if (!broken) return;
        if (!(fabsf(y) <= -LOWEST)) *broken = 1;
        if (!(forbidden && forbidden[n])) best.offer(y, n);
    });
    if (!broken) return;
    found[threadIdx.x] = best;
    __syncthreads();
    if (threadIdx.x >= group.rows) return;
    for (int i = threadIdx.x; i < WARPS * WARP; i += ROWS) best.offer(found[i].score, found[i].token);
    const size_t part = size_t(group.first + threadIdx.x) * gridDim.y + blockIdx.y;
    best_score[part] = best.score;
    best_token[part] = best.token;
}
