// Tensor-core products of weight matrices and 5 to 64 rows, fused with the operations that follow. They are still bound
// by memory bandwidth: each weight is read once, 16 bytes per lane, from global memory into the registers of the mma
// operand.
//
// A step is 32 elements of k. The order of a sum over k is free, as long as both operands use the same: lane 4 g + i
// loads the eight elements from k + 8 i on, of rows g and g + 8 of a weight tile and of row g of each tile of x, and
// `multiply_tiles` uses four at a time.
//
// A group of `splits` warps computes 16 TILES outputs of up to ROWS rows and divides the steps among its warps
// (split-K). A thread block of 8 warps has 8 / splits groups and loops over further outputs until all are done.
//
// x (rows, width) in T; width a multiple of 8; weight (outputs, weight_stride) with zeros beyond the width. Grid: any
// number of thread blocks. Shared memory: 8 ROWS (16 TILES + 4) floats.

constexpr int WARPS = 8, STEP = 32;

/// Thread blocks per SM for which the compiler must leave registers.
template <int ROWS>
constexpr int BLOCKS = ROWS > 32 ? 1 : 2;

/// Steps whose weight loads are in flight at once: at least 32 KB per SM, which is the latency-bandwidth product of an
/// SM's share of the memory bandwidth of a large GPU.
template <int TILES>
constexpr int DEPTH = 4 / TILES;

/// Row stride of the sums in shared memory, in floats, padded so that the stores of a warp have no bank conflicts.
template <int TILES>
constexpr int PITCH = 16 * TILES + 4;

/// Eight elements of two rows of a weight tile, eight outputs apart, with zeros beyond the width.
struct Weights {
    uint4 low, high;
};

/// The weights that a lane reads for the outputs from `first` on: two rows of each tile, eight outputs apart. The
/// lane's warp has the steps part, part + splits, ...
template <int TILES, class T>
struct Lane {
    const uint4* weight;
    unsigned low[TILES], high[TILES];  // offsets of the rows, in units of 16 bytes
    int width, begin, apart;

    __device__ __forceinline__ Lane(const T* weight, int stride, int first, int outputs, int width, int part, int splits)
        : weight(reinterpret_cast<const uint4*>(weight)), width(width), begin(part * STEP), apart(splits * STEP) {
#pragma unroll
        for (int t = 0; t < TILES; ++t) {
            const int n = first + 16 * t + threadIdx.x % WARP / 4;
            low[t] = unsigned(min(n, outputs - 1)) * (stride / 8);
            high[t] = unsigned(min(n + 8, outputs - 1)) * (stride / 8);
        }
    }

    /// First element of this lane in a step.
    __device__ __forceinline__ int at(int step) const { return step + threadIdx.x % 4 * 8; }

    __device__ __forceinline__ void load(int step, Weights (&to)[TILES]) const {
        const int k = at(step);
        const uint4 zeros = make_uint4(0, 0, 0, 0);
#pragma unroll
        for (int t = 0; t < TILES; ++t) {
            to[t].low = k < width ? load_16_once(weight + (low[t] + k / 8)) : zeros;
            to[t].high = k < width ? load_16_once(weight + (high[t] + k / 8)) : zeros;
        }
    }

    __device__ __forceinline__ void load_first(Weights (&to)[DEPTH<TILES>][TILES]) const {
#pragma unroll
        for (int d = 0; d < DEPTH<TILES>; ++d) load(begin + d * apart, to[d]);
    }
};

/// sum[t][r] = this warp's partial sums of the 16 outputs of tile t and the rows 8 r ... 8 r + 7, in the layout of c of
/// `multiply_tiles`. `prefetched` is a rolling buffer: once the weights of a step are used, the loads of a later step
/// replace them.
template <int ROWS, int TILES, class T>
__device__ __forceinline__ void tile_products(
    const T* x, const Lane<TILES, T>& weights, int rows, Weights (&prefetched)[DEPTH<TILES>][TILES],
    float (&sum)[TILES][ROWS / 8][4]) {
#pragma unroll
    for (int i = 0; i < TILES * ROWS / 2; ++i) sum[i / (ROWS / 2)][i / 4 % (ROWS / 8)][i % 4] = 0.f;
    const int width = weights.width, turn = DEPTH<TILES> * weights.apart;
    for (int begin = weights.begin; begin < width; begin += turn) {
#pragma unroll
        for (int d = 0; d < DEPTH<TILES>; ++d) {
            const int step = begin + d * weights.apart, k = weights.at(step);
            if (step >= width) break;
            Weights now[TILES];
#pragma unroll
            for (int t = 0; t < TILES; ++t) now[t] = prefetched[d][t];
            weights.load(step + turn, prefetched[d]);
#pragma unroll
            for (int r = 0; r < ROWS / 8; ++r) {
                const int row = 8 * r + threadIdx.x % WARP / 4;
                uint4 b = make_uint4(0, 0, 0, 0);
                if (row < rows && k < width) b = load_16(x + size_t(row) * width + k);
#pragma unroll
                for (int t = 0; t < TILES; ++t) {
                    const uint4 low = now[t].low, high = now[t].high;
                    const unsigned left[4] = {low.x, high.x, low.y, high.y}, right[4] = {low.z, high.z, low.w, high.w};
                    multiply_tiles<T>(sum[t][r], left, b.x, b.y);
                    multiply_tiles<T>(sum[t][r], right, b.z, b.w);
                }
            }
        }
    }
}

/// Call store(row, n, sum) for every row and output, each in one thread. It is the whole kernel body, so it also
/// handles programmatic dependent launch: it loads the first weights before it waits for the preceding kernel.
template <int ROWS, int TILES, class T, class Store>
__device__ __forceinline__ void products(
    const T* x, const T* weight, int stride, int rows, int width, int outputs, int splits, float* scratch, const Store& store) {
    constexpr int OUTPUTS = 16 * TILES, SUMS = ROWS * PITCH<TILES>;
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, groups = WARPS / splits;
    const int begin = blockIdx.x * groups * OUTPUTS, apart = gridDim.x * groups * OUTPUTS;
    const int first = warp / splits * OUTPUTS, part = warp % splits;
    Lane<TILES, T> weights(weight, stride, begin + first, outputs, width, part, splits);
    Weights prefetched[DEPTH<TILES>][TILES];
    let_next_start();
    weights.load_first(prefetched);
    prefetch_weights<OUTPUTS>(weight, stride, begin + first, outputs, DEPTH<TILES> * splits * STEP, width, part);
    wait_for_previous();
    for (int base = begin; base < outputs; base += apart) {
        float sum[TILES][ROWS / 8][4];
        tile_products<ROWS, TILES>(x, weights, rows, prefetched, sum);
        if (base + apart < outputs) {
            weights = Lane<TILES, T>(weight, stride, base + apart + first, outputs, width, part, splits);
            weights.load_first(prefetched);
        }
#pragma unroll
        for (int i = 0; i < TILES * ROWS / 2; ++i) {
            const int t = i / (ROWS / 2), r = i / 4 % (ROWS / 8), e = i % 4;
            const int row = 8 * r + lane % 4 * 2 + e % 2, n = 16 * t + lane / 4 + e / 2 * 8;
            scratch[warp * SUMS + row * PITCH<TILES> + n] = sum[t][r][e];
        }
        __syncthreads();
        for (int i = threadIdx.x; i < groups * ROWS * OUTPUTS; i += blockDim.x) {
            const int group = i / (ROWS * OUTPUTS), row = i / OUTPUTS % ROWS, n = i % OUTPUTS;
            float all = 0.f;
            for (int part = 0; part < splits; ++part)
                all += scratch[(group * splits + part) * SUMS + row * PITCH<TILES> + n];
            const int output = base + group * OUTPUTS + n;
            if (row < rows && output < outputs) store(row, output, all);
        }
        __syncthreads();  // the scratch space may be written again
    }
}

/// x W^T + b, split per head and stored as by `qkv_matvec` of matvec.cu. Clauses: ATT-2, NUM-2, KVC-1.
template <class T, int ROWS, int TILES>
__global__ void __launch_bounds__(256, BLOCKS<ROWS>) qkv_tensor(
    const T* x, const T* __restrict__ weight, int weight_stride, const float* __restrict__ bias,
    float* query, T* keys, T* values, const int* start, int rows, int width, int time, int heads, int head_width,
    int head_stride, int capacity, int splits) {
    DYNAMIC_SHARED(float, scratch);
    const CacheShape cache{heads, head_width, head_stride, capacity};
    products<ROWS, TILES>(x, weight, weight_stride, rows, width, 3 * width, splits, scratch, [&](int row, int n, float y) {
        store_projected<T>(query, keys, values, cache, row, row / time, *start + row % time, n, y + bias[n]);
    });
}

/// out (rows, outputs) = gelu(x W^T + b), rounded: the input of the next product. Clauses: MLP-1 ... MLP-3.
template <class T, int ROWS, int TILES>
__global__ void __launch_bounds__(256, BLOCKS<ROWS>) gelu_tensor(
    const T* x, const T* __restrict__ weight, int weight_stride, const float* __restrict__ bias, T* out, int rows,
    int width, int outputs, int splits) {
    DYNAMIC_SHARED(float, scratch);
    products<ROWS, TILES>(x, weight, weight_stride, rows, width, outputs, splits, scratch, [&](int row, int n, float y) {
        out[size_t(row) * outputs + n] = round_to<T>(gelu(y + bias[n]));
    });
}

/// out (rows, outputs) = residual + (x W^T + b), rounded once. Clauses: ATT-9, ATT-10, MLP-4, MOD-3.
template <class T, int ROWS, int TILES>
__global__ void __launch_bounds__(256, BLOCKS<ROWS>) residual_tensor(
    const T* x, const T* __restrict__ weight, int weight_stride, const float* __restrict__ bias,
    const T* residual, T* out, int rows, int width, int outputs, int splits) {
    DYNAMIC_SHARED(float, scratch);
    products<ROWS, TILES>(x, weight, weight_stride, rows, width, outputs, splits, scratch, [&](int row, int n, float y) {
        const size_t at = size_t(row) * outputs + n;
        out[at] = round_to<T>(widen(residual[at]) + (y + bias[n]));
    });
}

/// logits (rows, outputs) = x times the LM head. If `broken` is not null, *broken is set to 1 if a logit is NaN or
/// infinite. Clauses: MOD-5, MOD-6.
template <class T, int ROWS, int TILES>
__global__ void __launch_bounds__(256, BLOCKS<ROWS>) head_tensor(
    const T* x, const T* __restrict__ weight, int weight_stride, float* logits, int* broken, int rows,
    int width, int outputs, int splits) {
    DYNAMIC_SHARED(float, scratch);
    products<ROWS, TILES>(x, weight, weight_stride, rows, width, outputs, splits, scratch, [&](int row, int n, float y) {
        logits[size_t(row) * outputs + n] = y;
        if (broken && !(fabsf(y) <= -LOWEST)) *broken = 1;
    });
}
