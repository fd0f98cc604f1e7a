// Building blocks of all kernels: the two dtypes of NUM-2, 16-byte loads, block reductions, layer norm.
//
// T is the compute dtype (float, __half, __nv_bfloat16 or double): weights, hidden states, keys and values.
// A = Acc<T> is the accumulation dtype of all arithmetic between a load and a store: double for double, else float.

constexpr int WARP = 32;
constexpr unsigned ALL_LANES = 0xffffffffu;

template <class T>
struct Accumulation {
    using type = float;
};
template <>
struct Accumulation<double> {
    using type = double;
};
template <class T>
using Acc = typename Accumulation<T>::type;

__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ double widen(double x) { return x; }
__device__ __forceinline__ float widen(__half x) { return __half2float(x); }
__device__ __forceinline__ float widen(__nv_bfloat16 x) { return __bfloat162float(x); }

/// Round to T, to nearest, ties to even (NUM-2).
template <class T>
__device__ __forceinline__ T round_to(Acc<T> x) {
    return x;
}
template <>
__device__ __forceinline__ __half round_to<__half>(float x) {
    return __float2half_rn(x);
}
template <>
__device__ __forceinline__ __nv_bfloat16 round_to<__nv_bfloat16>(float x) {
    return __float2bfloat16_rn(x);
}

/// Numbers per 16-byte load.
template <class T>
constexpr int PER_LOAD = 16 / sizeof(T);

template <class T>
__device__ __forceinline__ void unpack(const uint4& bits, Acc<T>* x) {
    const T* const numbers = reinterpret_cast<const T*>(&bits);
#pragma unroll
    for (int j = 0; j < PER_LOAD<T>; ++j) x[j] = widen(numbers[j]);
}

/// Load the elements [k, k + N) of a row of `width`, with zeros beyond its end; k is a multiple of N. If `whole`, the
/// width is a multiple of N, as in every published model, and each row is 16-byte aligned. Otherwise the numbers are
/// loaded one by one.
template <int N, class T>
__device__ __forceinline__ void load_row(bool whole, const T* row, int k, int width, Acc<T> (&x)[N]) {
    if (whole) {
#pragma unroll
        for (int j = 0; j < N; j += PER_LOAD<T>) unpack<T>(load_16(row + k + j), x + j);
    } else {
#pragma unroll
        for (int j = 0; j < N; ++j) x[j] = k + j < width ? widen(row[k + j]) : Acc<T>(0);
    }
}

/// First statement of a kernel that supports programmatic dependent launch (`Launch.starts_early`): let the next kernel
/// start, then wait for the preceding one. Arguments that other kernels write are not __restrict__, because the
/// compiler may move reads through __restrict__ pointers to before the wait.
__device__ __forceinline__ void start_early() {
    let_next_start();
    wait_for_previous();
}

/// Prefetch weights into the L2 cache: one line per lane, 4 KB per warp, of OUTPUTS rows starting at `first`, each from
/// element k on. `part` is the index of the warp within its split-K group.
template <int OUTPUTS, class T>
__device__ __forceinline__ void prefetch_weights(
    const T* weight, int stride, int first, int outputs, int k, int width, int part) {
    constexpr int LINE = 128 / sizeof(T), LINES = WARP / OUTPUTS;
    const int lane = threadIdx.x % WARP, n = first + lane % OUTPUTS;
    k += (part * LINES + lane / OUTPUTS) * LINE;
    if (n < outputs && k < width) prefetch_line(weight + size_t(n) * stride + k);
}

/// First bytes of the weights of the product after this one, in units of 16 bytes; none before sm_90.
struct NextWeights {
    const void* first;
    int loads;

    /// Prefetch the share of thread block `block` of `blocks` into the L2 cache, so that the memory is busy while this
    /// kernel ends and the kernels until that product run. One thread does it, and none waits.
    __device__ __forceinline__ void prefetch(int block, int blocks) const {
        const int each = (loads + blocks - 1) / blocks, begin = min(block * each, loads), count = min(each, loads - begin);
        if (threadIdx.x == 0 && count > 0) prefetch_bytes(static_cast<const uint4*>(first) + begin, count * 16u);
    }
};

template <class A>
__device__ __forceinline__ A warp_sum(A x) {
#pragma unroll
    for (int lane = WARP / 2; lane > 0; lane /= 2) x += __shfl_xor_sync(ALL_LANES, x, lane);
    return x;
}

/// Replace each x[i] by its sum over the threads of the block, in a fixed order, so the result is deterministic.
/// `scratch`: shared memory for N numbers per warp. All threads of the block must call it.
template <int N, class A>
__device__ __forceinline__ void block_sum(A (&x)[N], A* scratch) {
    const int warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
#pragma unroll
    for (int i = 0; i < N; ++i) {
        x[i] = warp_sum(x[i]);
        if (threadIdx.x % WARP == 0) scratch[warp * N + i] = x[i];
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < N; ++i) {
        x[i] = 0;
        for (int w = 0; w < warps; ++w) x[i] += scratch[w * N + i];
    }
    __syncthreads();  // the scratch space may be written again
}

/// Mean and 1 / sqrt(variance + epsilon) of each of `rows` rows (rows, width), rows <= ROWS. Clause: EMB-3.
template <int ROWS, class T>
__device__ __forceinline__ void moments(
    bool whole, const T* x, int rows, int width, double epsilon, Acc<T>* scratch, Acc<T> (&mean)[ROWS], Acc<T> (&inverse)[ROWS]) {
    using A = Acc<T>;
    constexpr int N = PER_LOAD<T>;
#pragma unroll
    for (int r = 0; r < ROWS; ++r) mean[r] = inverse[r] = 0;
    for (int k = threadIdx.x * N; k < width; k += blockDim.x * N) {
#pragma unroll
        for (int r = 0; r < ROWS; ++r) {
            if (r >= rows) break;
            A part[N];
            load_row<N>(whole, x + size_t(r) * width, k, width, part);
#pragma unroll
            for (int j = 0; j < N; ++j) mean[r] += part[j];
        }
    }
    block_sum(mean, scratch);
#pragma unroll
    for (int r = 0; r < ROWS; ++r) mean[r] /= width;
    for (int k = threadIdx.x * N; k < width; k += blockDim.x * N) {
#pragma unroll
        for (int r = 0; r < ROWS; ++r) {
            if (r >= rows) break;
            A part[N];
            load_row<N>(whole, x + size_t(r) * width, k, width, part);
#pragma unroll
            for (int j = 0; j < N; ++j) {
                const A centred = k + j < width ? part[j] - mean[r] : A(0);
                inverse[r] += centred * centred;
            }
        }
    }
    block_sum(inverse, scratch);
#pragma unroll
    for (int r = 0; r < ROWS; ++r) inverse[r] = A(1) / sqrt(inverse[r] / width + A(epsilon));
}

/// x/2 (1 + tanh(0.79788456 x (1 + 0.044715 x^2))). Clause: MLP-2.
template <class A>
__device__ __forceinline__ A gelu(A x) {
    return x * A(0.5) * (A(1) + tanh(A(0.79788456) * x * (A(1) + A(0.044715) * x * x)));
}

/// Destination of element n of the fused projection: a channel of one head's query (part 0), key (1) or value (2).
/// Clause: ATT-2.
struct Projected {
    int head, part, channel;
    __device__ __forceinline__ Projected(int n, int head_width)
        : head(n / (3 * head_width)), part(n / head_width % 3), channel(n % head_width) {}
};

/// Shape of one layer's keys and values: (B, H, capacity, stride).
struct CacheShape {
    int heads, head_width, stride, capacity;
    __device__ __forceinline__ size_t offset(int batch, int head, int column) const {
        return ((size_t(batch) * heads + head) * capacity + column) * stride;
    }
};

/// Store element n of row `row` of the fused projection, which is position `column` of sequence `batch`: queries (rows,
/// H K) unrounded, keys and values rounded into the cache. Clauses: ATT-2, NUM-2, KVC-1.
template <class T>
__device__ __forceinline__ void store_projected(
    Acc<T>* query, T* keys, T* values, const CacheShape& cache, int row, int batch, int column, int n, Acc<T> x) {
    const Projected to(n, cache.head_width);
    if (to.part == 0)
        query[(size_t(row) * cache.heads + to.head) * cache.head_width + to.channel] = x;
    else
        (to.part == 1 ? keys : values)[cache.offset(batch, to.head, column) + to.channel] = round_to<T>(x);
}

/// Score of a masked key: below every attention score that can occur, but finite, so that the difference of two is not
/// NaN.
constexpr float NO_SCORE = -1e30f;
constexpr float LOG2_E = 1.4426950408889634f;

/// Queries of one sequence and head that a thread block computes. `row` is the offset of the first query in (B, T, H,
/// K), `row_stride` the distance to the next one, and `last` the column after the last one.
struct QueryBlock {
    int head, batch, count, row_stride, first_column, last;
    size_t row;
};

/// Return the queries of this thread block, at most QUERIES, in the grid (H, time / QUERIES rounded up, B). Blocks with
/// the most keys start first.
template <int QUERIES>
__device__ __forceinline__ QueryBlock query_block(int start, int time, int heads, int head_width) {
    const int head = blockIdx.x, batch = blockIdx.z, t = (gridDim.y - 1 - blockIdx.y) * QUERIES;
    const int row_stride = heads * head_width, count = min(time - t, QUERIES), first_column = start + t;
    const size_t row = (size_t(batch) * time + t) * row_stride + head * head_width;
    return {head, batch, count, row_stride, first_column, first_column + count, row};
}

constexpr int NO_TOKEN = 0x7fffffff;
constexpr float LOWEST = -3.402823466e38f;

/// A score and its token. Of equal scores the lower token is better; a NaN score is never better. Clause: GEN-1.
struct Best {
    float score;
    int token;
    __device__ __forceinline__ bool is_better_than(float other, int other_token) const {
        return score > other || (score == other && token < other_token);
    }
    __device__ __forceinline__ void offer(float other, int other_token) {
        if (Best{other, other_token}.is_better_than(score, token)) *this = Best{other, other_token};
    }
};
__device__ __forceinline__ Best no_token() { return {LOWEST, NO_TOKEN}; }

/// Reduce the lanes' candidates to the best one, returned in every lane.
__device__ __forceinline__ Best warp_best(Best best) {
#pragma unroll
    for (int lanes = WARP / 2; lanes > 0; lanes /= 2) {
        const float score = __shfl_xor_sync(ALL_LANES, best.score, lanes);
        best.offer(score, __shfl_xor_sync(ALL_LANES, best.token, lanes));
    }
    return best;
}
