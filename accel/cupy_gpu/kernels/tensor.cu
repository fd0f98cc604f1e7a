// Products of weight matrices with 17 to 64 rows on the tensor cores, each with all that follows it. Still bound by the bytes of the
// weights, which are read once, 16 bytes a lane, from memory straight into the registers that are multiplied.
//
// A step is 32 numbers of k. Sums may run over them in any order that both factors have: lane 4 g + i reads the eight from
// k + 8 i on, of row g and row g + 8 of a tile of weights and of row g of each tile of x, and `multiply_tiles` takes four at a time.
//
// A group of `splits` warps computes 16 TILES outputs of up to ROWS rows and deals the steps out to its warps (split-K). A block
// of 8 warps has 8 / splits groups and goes on with further outputs until all are done.
//
// x (rows, width) in T; width a multiple of 8; weight (outputs, weight_stride) with zeros beyond the width. Grid: any number of
// blocks. Shared memory: 8 ROWS (16 TILES + 4) floats.

constexpr int WARPS = 8, STEP = 32;

/// Blocks of a multiprocessor for which the compiler must leave registers.
template <int ROWS>
constexpr int BLOCKS = ROWS > 32 ? 1 : 2;

/// Floats from a row of sums in shared memory to the next: the lanes of a warp meet no bank twice.
template <int TILES>
constexpr int PITCH = 16 * TILES + 4;

/// Eight numbers of two rows of a tile of weights, eight outputs apart; zeros beyond the width.
struct Weights {
    uint4 low, high;
};

template <int TILES, class T>
__device__ __forceinline__ void load_weights(
    const T* weight, int stride, int first, int outputs, int k, int width, Weights (&to)[TILES]) {
    const uint4 zeros = make_uint4(0, 0, 0, 0);
#pragma unroll
    for (int t = 0; t < TILES; ++t) {
        const int n = first + 16 * t + threadIdx.x % WARP / 4;
        to[t].low = k < width ? load_16_once(weight + size_t(min(n, outputs - 1)) * stride + k) : zeros;
        to[t].high = k < width ? load_16_once(weight + size_t(min(n + 8, outputs - 1)) * stride + k) : zeros;
    }
}

/// sum[t][r] = this warp's part of 16 outputs from first + 16 t on, of rows 8 r ... 8 r + 7, laid out as `multiply_tiles` leaves
/// it; it takes the steps part, part + splits, ... The next step's weights travel while one is multiplied.
template <int ROWS, int TILES, class T>
__device__ __forceinline__ void tile_products(
    const T* x, const T* weight, int stride, int rows, int width, int first, int outputs, int part, int splits,
    float (&sum)[TILES][ROWS / 8][4]) {
#pragma unroll
    for (int i = 0; i < TILES * ROWS / 2; ++i) sum[i / (ROWS / 2)][i / 4 % (ROWS / 8)][i % 4] = 0.f;
    const int lane = threadIdx.x % WARP, apart = splits * STEP;
    int k = part * STEP + lane % 4 * 8;
    Weights now[TILES], next[TILES];
    load_weights(weight, stride, first, outputs, k, width, now);
    for (int step = part * STEP; step < width; step += apart, k += apart) {
        load_weights(weight, stride, first, outputs, k + apart, width, next);
#pragma unroll
        for (int r = 0; r < ROWS / 8; ++r) {
            const int row = 8 * r + lane / 4;
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
#pragma unroll
        for (int t = 0; t < TILES; ++t) now[t] = next[t];
    }
}

/// store(row, n, sum of the products) for every row and output, each by one thread.
template <int ROWS, int TILES, class T, class Store>
__device__ __forceinline__ void products(
    const T* x, const T* weight, int stride, int rows, int width, int outputs, int splits, float* scratch, const Store& store) {
    constexpr int OUTPUTS = 16 * TILES, SUMS = ROWS * PITCH<TILES>;
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, groups = WARPS / splits;
    for (int base = blockIdx.x * groups * OUTPUTS; base < outputs; base += gridDim.x * groups * OUTPUTS) {
        float sum[TILES][ROWS / 8][4];
        tile_products<ROWS, TILES>(
            x, weight, stride, rows, width, base + warp / splits * OUTPUTS, outputs, warp % splits, splits, sum);
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

/// x W^T + b, split per head, as `qkv_matvec` of matvec.cu stores it. Clauses: ATT-2, NUM-2, KVC-1.
template <class T, int ROWS, int TILES>
__global__ void __launch_bounds__(256, BLOCKS<ROWS>) qkv_tensor(
    const T* __restrict__ x, const T* __restrict__ weight, int weight_stride, const float* __restrict__ bias,
    float* __restrict__ query, T* __restrict__ keys, T* __restrict__ values, const int* __restrict__ start, int rows, int width,
    int time, int heads, int head_width, int head_stride, int capacity, int splits) {
    DYNAMIC_SHARED(float, scratch);
    const CacheShape cache{heads, head_width, head_stride, capacity};
    products<ROWS, TILES>(x, weight, weight_stride, rows, width, 3 * width, splits, scratch, [&](int row, int n, float y) {
        store_projected<T>(query, keys, values, cache, row, row / time, *start + row % time, n, y + bias[n]);
    });
}

/// out (rows, outputs) = gelu(x W^T + b), rounded: what the next product multiplies. Clauses: MLP-1 ... MLP-3.
template <class T, int ROWS, int TILES>
__global__ void __launch_bounds__(256, BLOCKS<ROWS>) gelu_tensor(
    const T* __restrict__ x, const T* __restrict__ weight, int weight_stride, const float* __restrict__ bias, T* __restrict__ out,
    int rows, int width, int outputs, int splits) {
    DYNAMIC_SHARED(float, scratch);
    products<ROWS, TILES>(x, weight, weight_stride, rows, width, outputs, splits, scratch, [&](int row, int n, float y) {
        out[size_t(row) * outputs + n] = round_to<T>(gelu(y + bias[n]));
    });
}

/// out (rows, outputs) = residual + (x W^T + b), rounded once. Clauses: ATT-9, ATT-10, MLP-4, MOD-3.
template <class T, int ROWS, int TILES>
__global__ void __launch_bounds__(256, BLOCKS<ROWS>) residual_tensor(
    const T* __restrict__ x, const T* __restrict__ weight, int weight_stride, const float* __restrict__ bias,
    const T* __restrict__ residual, T* __restrict__ out, int rows, int width, int outputs, int splits) {
    DYNAMIC_SHARED(float, scratch);
    products<ROWS, TILES>(x, weight, weight_stride, rows, width, outputs, splits, scratch, [&](int row, int n, float y) {
        const size_t at = size_t(row) * outputs + n;
        out[at] = round_to<T>(widen(residual[at]) + (y + bias[n]));
    });
}

/// logits (rows, outputs) = x times the head. If `broken` is not null, it becomes 1 where a logit is NaN or infinite.
/// Clauses: MOD-5, MOD-6.
template <class T, int ROWS, int TILES>
__global__ void __launch_bounds__(256, BLOCKS<ROWS>) head_tensor(
    const T* __restrict__ x, const T* __restrict__ weight, int weight_stride, float* __restrict__ logits, int* broken, int rows,
    int width, int outputs, int splits) {
    DYNAMIC_SHARED(float, scratch);
    products<ROWS, TILES>(x, weight, weight_stride, rows, width, outputs, splits, scratch, [&](int row, int n, float y) {
        logits[size_t(row) * outputs + n] = y;
        if (broken && !(fabsf(y) <= -LOWEST)) *broken = 1;
    });
}
