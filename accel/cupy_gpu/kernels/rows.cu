// Row-wise kernels around cuBLAS GEMMs, one thread block per row. T is any dtype, double included.
//
// Shared memory: one number of type A per warp. A null `ln_weight` selects the pre-layernorm residual (MOD-3).

/// out[r] = LN(table[ids[r]]). Grid: rows. Clauses: EMB-3 ... EMB-6.
template <class T>
__global__ void __launch_bounds__(256) embed_norm(
    const int* ids, const T* __restrict__ table, int table_stride, const Acc<T>* __restrict__ ln_weight,
    const Acc<T>* __restrict__ ln_bias, double epsilon, T* __restrict__ out, int width) {
    DYNAMIC_SHARED(Acc<T>, scratch);
    start_early();
    const T* const row = table + size_t(ids[blockIdx.x]) * table_stride;
    Acc<T> mean[1], inverse[1];
    moments(width % PER_LOAD<T> == 0, row, 1, width, epsilon, scratch, mean, inverse);
    for (int k = threadIdx.x; k < width; k += blockDim.x)
        out[size_t(blockIdx.x) * width + k] = round_to<T>((widen(row[k]) - mean[0]) * inverse[0] * ln_weight[k] + ln_bias[k]);
}

/// out[r] = LN(x[r]), rounded: the final norm, or the input of a GEMM. Grid: rows. Clauses: EMB-3, ATT-1, MLP-1, MOD-4.
template <class T>
__global__ void __launch_bounds__(256) layer_norm(
    const T* x, const Acc<T>* __restrict__ ln_weight, const Acc<T>* __restrict__ ln_bias, double epsilon,
    T* __restrict__ out, int width) {
    DYNAMIC_SHARED(Acc<T>, scratch);
    start_early();
    const T* const row = x + size_t(blockIdx.x) * width;
    Acc<T> mean[1], inverse[1];
    moments(width % PER_LOAD<T> == 0, row, 1, width, epsilon, scratch, mean, inverse);
    for (int k = threadIdx.x; k < width; k += blockDim.x)
        out[size_t(blockIdx.x) * width + k] = round_to<T>((widen(row[k]) - mean[0]) * inverse[0] * ln_weight[k] + ln_bias[k]);
}

/// Split fused (rows, 3 H K) + bias into queries (rows, H K) of type A, and keys and values, which are rounded into the
/// columns [start, start + time) of the cache. Grid: rows. Clauses: ATT-2, NUM-2, KVC-1.
template <class T>
__global__ void __launch_bounds__(256) qkv_split(
    const Acc<T>* __restrict__ fused, const Acc<T>* __restrict__ bias, Acc<T>* __restrict__ query, T* __restrict__ keys,
    T* __restrict__ values, const int* __restrict__ start, int time, int heads, int head_width, int head_stride, int capacity) {
    const CacheShape cache{heads, head_width, head_stride, capacity};
    const int width = heads * head_width, batch = blockIdx.x / time, column = *start + blockIdx.x % time;
    for (int n = threadIdx.x; n < 3 * width; n += blockDim.x) {
        const Acc<T> x = fused[size_t(blockIdx.x) * 3 * width + n] + bias[n];
        store_projected<T>(query, keys, values, cache, blockIdx.x, batch, column, n, x);
    }
}

/// out = gelu(y + bias), rounded: the input of the down projection. Grid: rows. Clauses: MLP-2, MLP-3.
template <class T>
__global__ void __launch_bounds__(256) bias_gelu(
    const Acc<T>* __restrict__ y, const Acc<T>* __restrict__ bias, T* __restrict__ out, int width) {
    const size_t row = size_t(blockIdx.x) * width;
    for (int n = threadIdx.x; n < width; n += blockDim.x) out[row + n] = round_to<T>(gelu(y[row + n] + bias[n]));
}

/// out = residual + (y + bias), rounded once. The residual is LN(x) (post-layernorm), or x if `ln_weight` is null.
/// Grid: rows. Clauses: MOD-3, NUM-2.
template <class T>
__global__ void __launch_bounds__(256) bias_residual(
    const Acc<T>* __restrict__ y, const Acc<T>* __restrict__ bias, const T* __restrict__ x, const Acc<T>* __restrict__ ln_weight,
    const Acc<T>* __restrict__ ln_bias, double epsilon, T* __restrict__ out, int width) {
    DYNAMIC_SHARED(Acc<T>, scratch);
    const size_t row = size_t(blockIdx.x) * width;
    Acc<T> mean[1], inverse[1];
    if (ln_weight) moments(width % PER_LOAD<T> == 0, x + row, 1, width, epsilon, scratch, mean, inverse);
    for (int n = threadIdx.x; n < width; n += blockDim.x) {
        Acc<T> residual = widen(x[row + n]);
        if (ln_weight) residual = (residual - mean[0]) * inverse[0] * ln_weight[n] + ln_bias[n];
        out[row + n] = round_to<T>(residual + (y[row + n] + bias[n]));
    }
}
