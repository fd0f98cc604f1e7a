// ALiBi attention that reads keys and values with one 16-byte load per lane: any head width, any T.
//
// LANES lanes (a power of two) form a group that shares a key. Each lane holds CHUNKS 16-byte chunks of the key, so
// LANES * CHUNKS * 16 bytes cover the head width, and a warp processes WARP / LANES keys at a time. Each lane group
// keeps the state of an online softmax. The states are merged within the warp, then over the warps of a thread block,
// then over the splits.
//
// query (B, T, H, K) in A; keys and values (B, H, capacity, head_stride) in T; is_real (B, capacity) or null; slopes
// (H). A query in column i attends to the real columns j <= i with the bias slope * (j - i). A query in a padding
// column attends to nothing, and its context is zero. Clauses: ATT-3 ... ATT-9, ALI-4, ALI-5.

/// Online softmax: over the keys processed so far, `total` is the sum of exp(score - running_max) and `sum` the same
/// sum times the values.
template <class A, int N>
struct Softmax {
    A running_max = A(NO_SCORE), total = 0, sum[N] = {};

    /// Rescale the sums to a new running maximum, which is not lower than the old one.
    __device__ __forceinline__ void rescale(A new_max) {
        const A factor = exp(running_max - new_max);
        total *= factor;
#pragma unroll
        for (int i = 0; i < N; ++i) sum[i] *= factor;
        running_max = new_max;
    }

    /// Merge the state of the lane whose index is this lane's index XOR `lanes`.
    __device__ __forceinline__ void merge_lane(int lanes) {
        const A other = __shfl_xor_sync(ALL_LANES, running_max, lanes);
        rescale(other > running_max ? other : running_max);
        total += __shfl_xor_sync(ALL_LANES, total, lanes);
#pragma unroll
        for (int i = 0; i < N; ++i) sum[i] += __shfl_xor_sync(ALL_LANES, sum[i], lanes);
    }
};

/// One query of one head, with the keys and values of its sequence.
template <class T>
struct HeadView {
    const Acc<T>* query;          // (K) of one head
    const T *keys, *values;       // (capacity, stride) of one sequence and head
    const unsigned char* is_real; // (capacity), or null
    Acc<T> slope, scale;
    int column, head_width, stride;

    __device__ __forceinline__ bool is_padding() const { return is_real && !is_real[column]; }
};

/// Return the softmax state of one warp over the keys [first, last), of which it takes one turn (KEYS_PER_TURN keys) in
/// `step`. All lane groups return the same state.
template <class T, int LANES, int CHUNKS>
__device__ __forceinline__ Softmax<Acc<T>, CHUNKS * PER_LOAD<T>> attend(const HeadView<T>& view, int first, int last, int step) {
    using A = Acc<T>;
    constexpr int PER = PER_LOAD<T>, N = CHUNKS * PER, GROUPS = WARP / LANES, KEYS = CHUNKS == 1 ? 4 : 1;
    const int lane = threadIdx.x % LANES, group = threadIdx.x % WARP / LANES;
    A query[N];
#pragma unroll
    for (int i = 0; i < N; ++i) {
        const int k = (i / PER * LANES + lane) * PER + i % PER;
        query[i] = k < view.head_width ? view.query[k] * view.scale : A(0);
    }
    Softmax<A, N> state;
    for (int base = first; base < last; base += step * KEYS * GROUPS) {
        uint4 key_bits[KEYS][CHUNKS] = {}, value_bits[KEYS][CHUNKS] = {};  // all loads are issued before the first use
        bool visible[KEYS];
#pragma unroll
        for (int u = 0; u < KEYS; ++u) {
            const int key = base + u * GROUPS + group;
            visible[u] = key < last && !(view.is_real && !view.is_real[key]);
#pragma unroll
            for (int c = 0; c < CHUNKS; ++c) {
                const int k = (c * LANES + lane) * PER;
                if (visible[u] && k < view.stride) {
                    key_bits[u][c] = load_16(view.keys + size_t(key) * view.stride + k);
                    value_bits[u][c] = load_16(view.values + size_t(key) * view.stride + k);
                }
            }
        }
        A score[KEYS] = {}, new_max = state.running_max;
#pragma unroll
        for (int u = 0; u < KEYS; ++u) {
#pragma unroll
            for (int c = 0; c < CHUNKS; ++c) {
                A part[PER];
                unpack<T>(key_bits[u][c], part);
#pragma unroll
                for (int j = 0; j < PER; ++j) score[u] += query[c * PER + j] * part[j];
            }
#pragma unroll
            for (int lanes = LANES / 2; lanes > 0; lanes /= 2) score[u] += __shfl_xor_sync(ALL_LANES, score[u], lanes);
            score[u] += view.slope * A(base + u * GROUPS + group - view.column);
            if (visible[u] && score[u] > new_max) new_max = score[u];
        }
        state.rescale(new_max);
#pragma unroll
        for (int u = 0; u < KEYS; ++u) {
            const A weight = visible[u] ? exp(score[u] - new_max) : A(0);
            state.total += weight;
#pragma unroll
            for (int c = 0; c < CHUNKS; ++c) {
                A part[PER];
                unpack<T>(value_bits[u][c], part);
#pragma unroll
                for (int j = 0; j < PER; ++j) state.sum[c * PER + j] += weight * part[j];
            }
        }
    }
#pragma unroll
    for (int lanes = LANES; lanes < WARP; lanes *= 2) state.merge_lane(lanes);
    return state;
}

/// Keys that a warp processes per iteration.
template <int LANES, int CHUNKS>
constexpr int KEYS_PER_TURN = (CHUNKS == 1 ? 4 : 1) * WARP / LANES;

/// The plain kernel: one warp per query, for every T, head width and start. Writes context (B, T, H, K), rounded.
/// Grid: (time / 4 rounded up, H, B), 4 warps; no shared memory.
template <class T, int LANES, int CHUNKS>
__global__ void __launch_bounds__(128, 4) attention_rows(
    const Acc<T>* __restrict__ query, const T* __restrict__ keys, const T* __restrict__ values,
    const unsigned char* __restrict__ is_real, const Acc<T>* __restrict__ slopes, T* __restrict__ context,
    const int* __restrict__ start, int time, int heads, int head_width, int head_stride, int capacity, double scale) {
    constexpr int PER = PER_LOAD<T>;
    const int t = blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP, head = blockIdx.y, batch = blockIdx.z;
    if (t >= time) return;
    const CacheShape cache{heads, head_width, head_stride, capacity};
    const size_t row = ((size_t(batch) * time + t) * heads + head) * head_width, offset = cache.offset(batch, head, 0);
    const HeadView<T> view{query + row, keys + offset, values + offset, is_real ? is_real + size_t(batch) * capacity : nullptr,
                         slopes[head], Acc<T>(scale), *start + t, head_width, head_stride};
    const int last = view.is_padding() ? 0 : view.column + 1;
    const auto state = attend<T, LANES, CHUNKS>(view, 0, last, 1);
    const Acc<T> inverse = last == 0 ? Acc<T>(0) : Acc<T>(1) / state.total;
    if (threadIdx.x % WARP >= LANES) return;
#pragma unroll
    for (int i = 0; i < CHUNKS * PER; ++i) {
        const int k = (i / PER * LANES + threadIdx.x % LANES) * PER + i % PER;
        if (k < head_width) context[row + k] = round_to<T>(state.sum[i] * inverse);
    }
}

/// Merge the partial states of `count` warps, each (running max, total, sum (K)) and `stride` numbers apart, in order.
/// Returns the merged running max, the total, and channel k of the sum.
__device__ __forceinline__ float3 merge_parts(const float* parts, int count, int stride, int k) {
    float3 merged = make_float3(NO_SCORE, 0.f, 0.f);
    for (int i = 0; i < count; ++i) merged.x = fmaxf(merged.x, parts[size_t(i) * stride]);
    for (int i = 0; i < count; ++i) {
        const float* const part = parts + size_t(i) * stride;
        const float factor = expf(part[0] - merged.x);
        merged.y += factor * part[1];
        merged.z += factor * part[2 + k];
    }
    return merged;
}

/// Merge the partial states of `splits` thread blocks for one query and call store(k, context) for each channel, in one
/// thread. Every warp computes the weights of all splits, a lane per split, so that no load waits for another one but
/// the sums for their weights. Called by all threads.
template <class Store>
__device__ __forceinline__ void merge_splits(const float* parts, int splits, int stride, int head_width, const Store& store) {
    const int lane = threadIdx.x % WARP;
    float peak = NO_SCORE;
    for (int i = lane; i < splits; i += WARP) peak = fmaxf(peak, parts[size_t(i) * stride]);
#pragma unroll
    for (int lanes = WARP / 2; lanes > 0; lanes /= 2) peak = fmaxf(peak, __shfl_xor_sync(ALL_LANES, peak, lanes));
    for (int first = threadIdx.x - lane; first < head_width; first += blockDim.x) {
        const int k = min(first + lane, head_width - 1);
        float total = 0.f, sum = 0.f;
        for (int base = 0; base < splits; base += WARP) {
            const float* const part = parts + size_t(min(base + lane, splits - 1)) * stride;
            const float weight = base + lane < splits ? expf(part[0] - peak) : 0.f;
            const int count = min(WARP, splits - base);
            total += weight * part[1];
#pragma unroll 8
            for (int i = 0; i < count; ++i) sum += __shfl_sync(ALL_LANES, weight, i) * parts[size_t(base + i) * stride + 2 + k];
        }
        total = warp_sum(total);
        if (first + lane < head_width) store(k, sum / total);
    }
}

/// Split-K decoding attention (flash-decoding): one query per sequence (time = 1), whose keys are split over gridDim.x
/// thread blocks. The block that finishes last merges the partial states in split order, so the result does not depend
/// on which block was last. A block that is alone writes the context itself. C is the dtype of context (B, H, K): float if a gemv kernel reads it, T if a GEMM does.
///
/// Grid: (splits, H, B), 4 warps. Shared memory: 4 (K + 2) floats, with K rounded up to whole lanes.
/// partials: (B, H, splits, K + 2) floats; arrival_counter: (B, H) ints, zero before and after.
template <class T, class C, int LANES, int CHUNKS>
__global__ void __launch_bounds__(128, 4) attention_decode(
    const float* query, const T* keys, const T* values, const unsigned char* __restrict__ is_real,
    const float* __restrict__ slopes, C* context, float* partials, int* arrival_counter, const int* start, int heads,
    int head_width, int head_stride, int capacity, double scale) {
    constexpr int PER = PER_LOAD<T>, TURN = KEYS_PER_TURN<LANES, CHUNKS>, PART = 2 + LANES * CHUNKS * PER;
    DYNAMIC_SHARED(float, parts);  // (warps, PART)
    __shared__ bool is_last;
    start_early();
    const int warp = threadIdx.x / WARP, warps = blockDim.x / WARP, head = blockIdx.y, batch = blockIdx.z;
    const int pair = batch * heads + head, splits = gridDim.x, part = head_width + 2;
    const CacheShape cache{heads, head_width, head_stride, capacity};
    const size_t offset = cache.offset(batch, head, 0);
    const HeadView<T> view{query + size_t(pair) * head_width, keys + offset, values + offset,
                         is_real ? is_real + size_t(batch) * capacity : nullptr, slopes[head], float(scale), *start, head_width,
                         head_stride};

    const int visible = view.is_padding() ? 0 : view.column + 1, keys_per_split = (visible + splits - 1) / splits;
    const int first = blockIdx.x * keys_per_split, last = min(visible, first + keys_per_split);
    const auto state = attend<T, LANES, CHUNKS>(view, first + warp * TURN, last, warps);
    if (threadIdx.x % WARP < LANES) {
#pragma unroll
        for (int i = 0; i < CHUNKS * PER; ++i)
            parts[warp * PART + 2 + (i / PER * LANES + threadIdx.x % LANES) * PER + i % PER] = state.sum[i];
        parts[warp * PART] = state.running_max;
        parts[warp * PART + 1] = state.total;
    }
    __syncthreads();

    const auto store = [&](int k, float x) { context[size_t(pair) * head_width + k] = round_to<C>(visible == 0 ? 0.f : x); };
    float* const mine = partials + (size_t(pair) * splits + blockIdx.x) * part;
    for (int k = threadIdx.x; k < head_width; k += blockDim.x) {
        const float3 merged = merge_parts(parts, warps, PART, k);
        if (splits == 1) {
            store(k, merged.z / merged.y);
            continue;
        }
        mine[0] = merged.x;
        mine[1] = merged.y;
        mine[2 + k] = merged.z;
    }
    if (splits == 1) return;
    __syncthreads();  // the arrival of thread 0 makes the partial state of all threads visible
    if (threadIdx.x == 0) is_last = count_arrival(arrival_counter + pair) == splits - 1;
    __syncthreads();
    if (!is_last) return;
    merge_splits(partials + size_t(pair) * splits * part, splits, part, head_width, store);
    if (threadIdx.x == 0) arrival_counter[pair] = 0;
}
