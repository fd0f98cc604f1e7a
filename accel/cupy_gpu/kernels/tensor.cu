// Tensor-core products of weight matrices and 5 to 64 rows, fused with the operations that follow. They are still bound
// by memory bandwidth: each weight is read once, 16 bytes per lane, through a ring of asynchronous copies in shared
// memory. A lane copies what it multiplies itself, so the ring needs no barrier. A ring in registers would be waited for
// too early: a warp has six scoreboards, and the compiler shares them between weights and rows of x.
//
// A step is 32 elements of k. The order of a sum over k is free, as long as both operands use the same: lane 4 g + i
// loads the eight elements from k + 8 i on, of rows g and g + 8 of a weight tile and of row g of each tile of x, and
// `multiply_tiles` uses four at a time.
//
// A group of `splits` warps computes 16 TILES outputs of up to ROWS rows and divides the steps among its warps
// (split-K). A thread block of 8 warps has 8 / splits groups and loops over further outputs until all are done.
//
// x (rows, width) in T; width a multiple of 8; weight (outputs, weight_stride) with zeros beyond the width. Grid: any
// number of thread blocks. Shared memory: the ring, 32 KB for one tile and 48 KB for two, then 160 ROWS floats.

constexpr int WARPS = 8, STEP = 32;

/// Thread blocks per SM for which the compiler must leave registers.
template <int ROWS>
constexpr int BLOCKS = ROWS > 32 ? 1 : 2;

/// Entries of the ring: steps whose weights are in flight at once. One less, while a step is multiplied, is 24 KB per
/// thread block or more, the latency-bandwidth product of an SM's share of the memory bandwidth of a large GPU.
template <int TILES>
constexpr int DEPTH = TILES == 1 ? 4 : 3;

/// Row stride of the sums in shared memory, in floats, padded so that the stores of a warp have no bank conflicts.
constexpr int PITCH = 16 + 4;

/// Bytes of the ring: two loads per thread, tile and entry.
template <int TILES>
constexpr int RING = DEPTH<TILES> * TILES * 2 * WARPS * WARP * sizeof(uint4);

/// The weights that a lane reads for the outputs from `first` on: two rows of each tile, eight outputs apart. The
/// lane's warp has the steps part, part + splits, ... Step i is copied to entry i % DEPTH of the ring.
template <int TILES, class T>
struct Lane {
    const uint4* weight;
    uint4* ring;                       // this lane's: 2 TILES loads per entry, WARPS * WARP apart
    unsigned low[TILES], high[TILES];  // offsets of the rows, in units of 16 bytes
    int width, begin, apart;

    __device__ __forceinline__ Lane(
        const T* weight, void* ring, int stride, int first, int outputs, int width, int part, int splits)
        : weight(reinterpret_cast<const uint4*>(weight)), ring(static_cast<uint4*>(ring) + threadIdx.x), width(width),
          begin(part * STEP), apart(splits * STEP) {
#pragma unroll
        for (int t = 0; t < TILES; ++t) {
            const int n = first + 16 * t + threadIdx.x % WARP / 4;
            low[t] = unsigned(min(n, outputs - 1)) * (stride / 8);
            high[t] = unsigned(min(n + 8, outputs - 1)) * (stride / 8);
        }
    }

    /// First element of this lane in a step.
    __device__ __forceinline__ int at(int step) const { return step + threadIdx.x % 4 * 8; }

    /// Place of eight elements in an entry of the ring: of the lower (0) or upper (1) row of a tile.
    __device__ __forceinline__ uint4* place(int entry, int tile, int upper) const {
        return ring + ((entry * TILES + tile) * 2 + upper) * WARPS * WARP;
    }

    /// Start copying a step, with zeros beyond the width, where nothing is read. It is one group of copies, which is empty
    /// after the last step.
    __device__ __forceinline__ void copy(int step, int entry) const {
        const int k = at(step);
        if (step < width) {
#pragma unroll
            for (int t = 0; t < TILES; ++t) {
                copy_16_once_async(place(entry, t, 0), weight + (low[t] + k / 8), k >= width);
                copy_16_once_async(place(entry, t, 1), weight + (high[t] + k / 8), k >= width);
            }
        }
        close_copy_group();
    }

    __device__ __forceinline__ void copy_first() const {
#pragma unroll
        for (int d = 0; d < DEPTH<TILES>; ++d) copy(begin + d * apart, d);
    }
};

/// sum[t][r] = this warp's partial sums of the 16 outputs of tile t and the rows 8 r ... 8 r + 7, in the layout of c of
/// `multiply_tiles`. The copies of the first steps are in flight. Once a step is multiplied, a later one replaces it.
template <int ROWS, int TILES, class T>
__device__ __forceinline__ void tile_products(
    const T* x, const Lane<TILES, T>& weights, int rows, float (&sum)[TILES][ROWS / 8][4]) {
#pragma unroll
    for (int i = 0; i < TILES * ROWS / 2; ++i) sum[i / (ROWS / 2)][i / 4 % (ROWS / 8)][i % 4] = 0.f;
    const int width = weights.width, turn = DEPTH<TILES> * weights.apart;
    for (int begin = weights.begin; begin < width; begin += turn) {
#pragma unroll
        for (int d = 0; d < DEPTH<TILES>; ++d) {
            const int step = begin + d * weights.apart, k = weights.at(step);
            if (step >= width) break;
            wait_for_copies<DEPTH<TILES> - 1>();
            uint4 low[TILES], high[TILES];
#pragma unroll
            for (int t = 0; t < TILES; ++t) {
                low[t] = load_16(weights.place(d, t, 0));
                high[t] = load_16(weights.place(d, t, 1));
            }
#pragma unroll
            for (int r = 0; r < ROWS / 8; ++r) {
                const int row = 8 * r + threadIdx.x % WARP / 4;
                uint4 b = make_uint4(0, 0, 0, 0);
                if (row < rows && k < width) b = load_16(x + size_t(row) * width + k);
#pragma unroll
                for (int t = 0; t < TILES; ++t) {
                    const unsigned left[4] = {low[t].x, high[t].x, low[t].y, high[t].y};
                    const unsigned right[4] = {low[t].z, high[t].z, low[t].w, high[t].w};
                    multiply_tiles<T>(sum[t][r], left, b.x, b.y);
                    multiply_tiles<T>(sum[t][r], right, b.z, b.w);
                }
            }
            weights.copy(step + turn, d);  // behind the last use of the entry
        }
    }
}

/// Call store(row, n, sum) for every row and output, each in one thread. It is the whole kernel body, so it also
/// handles programmatic dependent launch: it starts copying the first weights before it waits for the preceding kernel.
template <int ROWS, int TILES, class T, class Store>
__device__ __forceinline__ void products(
    const T* x, const T* weight, int stride, int rows, int width, int outputs, int splits, unsigned char* shared,
    const NextWeights& next, const Store& store) {
    constexpr int OUTPUTS = 16 * TILES, SUMS = ROWS * PITCH;
    float* const scratch = reinterpret_cast<float*>(shared + RING<TILES>);
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, groups = WARPS / splits;
    const int begin = blockIdx.x * groups * OUTPUTS, apart = gridDim.x * groups * OUTPUTS;
    const int first = warp / splits * OUTPUTS, part = warp % splits;
    Lane<TILES, T> weights(weight, shared, stride, begin + first, outputs, width, part, splits);
    let_next_start();
    weights.copy_first();
    prefetch_weights<OUTPUTS>(weight, stride, begin + first, outputs, DEPTH<TILES> * splits * STEP, width, part);
    next.prefetch(blockIdx.x, gridDim.x);
    wait_for_previous();
    for (int base = begin; base < outputs; base += apart) {
        float sum[TILES][ROWS / 8][4];
        tile_products<ROWS, TILES>(x, weights, rows, sum);
        if (base + apart < outputs) {
            weights = Lane<TILES, T>(weight, shared, stride, base + apart + first, outputs, width, part, splits);
            weights.copy_first();
        }
#pragma unroll
        for (int t = 0; t < TILES; ++t) {
#pragma unroll
            for (int i = 0; i < ROWS / 2; ++i) {
                const int row = 8 * (i / 4) + lane % 4 * 2 + i % 2, n = lane / 4 + i / 2 % 2 * 8;
                scratch[warp * SUMS + row * PITCH + n] = sum[t][i / 4][i % 4];
            }
            __syncthreads();
            for (int i = threadIdx.x; i < groups * ROWS * 16; i += blockDim.x) {
                const int group = i / (ROWS * 16), row = i / 16 % ROWS, n = i % 16;
                float all = 0.f;
                for (int part = 0; part < splits; ++part) all += scratch[(group * splits + part) * SUMS + row * PITCH + n];
                const int output = base + group * OUTPUTS + 16 * t + n;
                if (row < rows && output < outputs) store(row, output, all);
            }
            __syncthreads();  // the scratch space may be written again
        }
    }
}

/// x W^T + b, split per head and stored as by `qkv_matvec` of matvec.cu. Clauses: ATT-2, NUM-2, KVC-1.
template <class T, int ROWS, int TILES>
__global__ void __launch_bounds__(256, BLOCKS<ROWS>) qkv_tensor(
    const T* x, const T* __restrict__ weight, int weight_stride, const float* __restrict__ bias,
    float* query, T* keys, T* values, const int* start, int rows, int width, int time, int heads, int head_width,
    int head_stride, int capacity, int splits, const void* next, int next_loads) {
    DYNAMIC_SHARED(unsigned char, shared);
    const CacheShape cache{heads, head_width, head_stride, capacity};
    products<ROWS, TILES>(x, weight, weight_stride, rows, width, 3 * width, splits, shared, {next, next_loads}, [&](int row, int n, float y) {
        store_projected<T>(query, keys, values, cache, row, row / time, *start + row % time, n, y + bias[n]);
    });
}

/// out (rows, outputs) = gelu(x W^T + b), rounded: the input of the next product. Clauses: MLP-1 ... MLP-3.
template <class T, int ROWS, int TILES>
__global__ void __launch_bounds__(256, BLOCKS<ROWS>) gelu_tensor(
    const T* x, const T* __restrict__ weight, int weight_stride, const float* __restrict__ bias, T* out, int rows,
    int width, int outputs, int splits, const void* next, int next_loads) {
    DYNAMIC_SHARED(unsigned char, shared);
    products<ROWS, TILES>(x, weight, weight_stride, rows, width, outputs, splits, shared, {next, next_loads}, [&](int row, int n, float y) {
        out[size_t(row) * outputs + n] = round_to<T>(gelu(y + bias[n]));
    });
}

/// out (rows, outputs) = residual + (x W^T + b), rounded once. Clauses: ATT-9, ATT-10, MLP-4, MOD-3.
template <class T, int ROWS, int TILES>
__global__ void __launch_bounds__(256, BLOCKS<ROWS>) residual_tensor(
    const T* x, const T* __restrict__ weight, int weight_stride, const float* __restrict__ bias,
    const T* residual, T* out, int rows, int width, int outputs, int splits, const void* next, int next_loads) {
    DYNAMIC_SHARED(unsigned char, shared);
    products<ROWS, TILES>(x, weight, weight_stride, rows, width, outputs, splits, shared, {next, next_loads}, [&](int row, int n, float y) {
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
    DYNAMIC_SHARED(unsigned char, shared);
    products<ROWS, TILES>(x, weight, weight_stride, rows, width, outputs, splits, shared, {nullptr, 0}, [&](int row, int n, float y) {
        logits[size_t(row) * outputs + n] = y;
        if (broken && !(fabsf(y) <= -LOWEST)) *broken = 1;
    });
}
