// Choice of the next token on the device: greedy, or a seeded sample after temperature, top-k and top-p.
//
// A score is better than another if it is higher, or equal and of a lower token (GEN-1). `forbidden` has a nonzero byte
// for each token that must not be chosen; null allows all. The token chosen for row r is written to ids[r], which the
// next step reads, and to chosen[r * room + drawn[r] % room]. Then drawn[r] is incremented, and block 0 increments *position,
// which no kernel of this file reads.
//
// The n-th random number of row r is (x >> 11) 2^-53, where x is the first word of Philox4x64-10 (Salmon et al. 2011)
// of the key (keys[r], 0) and the counter (n + 1, 0, 0, 0), as in numpy.random.Philox(key=keys[r], counter=n). It
// depends on nothing else. A draw takes the first token, in the order of ids, whose cumulated probability exceeds the
// number. Clauses: GEN-9, GEN-10.

/// Outputs of a choice.
struct Record {
    int *ids, *chosen, *drawn, *position;
    int room;

    /// Record the token of a row; called by one thread of the row's block.
    __device__ __forceinline__ void put(int row, int token) const {
        token = token == NO_TOKEN ? 0 : token;  // all scores are NaN: `broken` is set, and the token is never used
        ids[row] = token;
        chosen[size_t(row) * room + drawn[row] % room] = token;
        ++drawn[row];
        if (row == 0) ++*position;
    }
};

/// Greedy: the best of the `parts` candidates that head_matvec wrote for each row. Grid: rows, 1 warp.
__global__ void __launch_bounds__(32) choose_best(
    const float* best_score, const int* best_token, int* ids, int* chosen, int* drawn, int* position, int room, int parts) {
    start_early();
    const size_t row = size_t(blockIdx.x) * parts;
    Best best = no_token();
    for (int i = threadIdx.x; i < parts; i += WARP) best.offer(best_score[row + i], best_token[row + i]);
    best = warp_best(best);
    if (threadIdx.x == 0) Record{ids, chosen, drawn, position, room}.put(blockIdx.x, best.token);
}

/// Each warp writes the k best of its chunk of a row's scores, best first, to top_score and top_token (rows, lists, k),
/// where lists = gridDim.x * 8. If the chunk has fewer than k tokens, the rest is NO_TOKEN. Grid: (lists / 8, rows), 8
/// warps.
__global__ void __launch_bounds__(256) top_parts(
    const float* scores, const unsigned char* __restrict__ forbidden, float* top_score, int* top_token, int vocabulary, int k) {
    start_early();
    const int lane = threadIdx.x % WARP, lists = gridDim.x * (blockDim.x / WARP);
    const int list = blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP, chunk = (vocabulary + lists - 1) / lists;
    const int first = list * chunk, last = min(vocabulary, first + chunk);
    const float* const row = scores + size_t(blockIdx.y) * vocabulary;
    const size_t out = (size_t(blockIdx.y) * lists + list) * k;
    Best taken{-LOWEST, -1}, mine = no_token();
    for (int i = 0; i < k; ++i) {
        const bool rescan = i == 0 || mine.token == taken.token;
        if (rescan) {  // find this lane's best token that is worse than the one just taken
            mine = no_token();
            for (int n = first + lane; n < last; n += WARP)
                if (taken.is_better_than(row[n], n) && !(forbidden && forbidden[n])) mine.offer(row[n], n);
        }
        taken = warp_best(mine);
        if (lane == 0) {
            top_score[out + i] = taken.score;
            top_token[out + i] = taken.token;
        }
    }
}

/// Merge up to 32 sorted lists of length k, one per lane (null: no list), into the k best, best first. Called by a
/// whole warp.
__device__ __forceinline__ void merge_lists(const float* score, const int* token, int k, float* to_score, int* to_token) {
    int at = 0;
    for (int i = 0; i < k; ++i) {
        Best head = no_token();
        if (score && at < k) head = Best{score[at], token[at]};
        const Best best = warp_best(head);
        if (best.token != NO_TOKEN && best.token == head.token) ++at;
        if (threadIdx.x % WARP == 0) {
            to_score[i] = best.score;
            to_token[i] = best.token;
        }
    }
}

__device__ __forceinline__ double philox_uniform(unsigned long long key, unsigned long long number) {
    constexpr unsigned long long M0 = 0xD2E7470EE14C6C93ull, M1 = 0xCA5A826395121157ull;
    unsigned long long c0 = number + 1, c1 = 0, c2 = 0, c3 = 0, k0 = key, k1 = 0;
#pragma unroll
    for (int round = 0; round < 10; ++round) {
        const unsigned long long high0 = __umul64hi(M0, c0), high1 = __umul64hi(M1, c2);
        const unsigned long long low0 = M0 * c0, low1 = M1 * c2;
        c0 = high1 ^ c1 ^ k0;
        c1 = low1;
        c2 = high0 ^ c3 ^ k1;
        c3 = low0;
        k0 += 0x9E3779B97F4A7C15ull;
        k1 += 0xBB67AE8584CAA73Bull;
    }
    return double(c0 >> 11) * (1.0 / 9007199254740992.0);
}

/// Sample among the k best tokens of each row, merged from the `lists` (at most 256) of top_parts. The weights are
/// exp(score / temperature); top-p keeps the smallest set of best tokens whose probability reaches top_p. The k best
/// are written to best_score and best_token (rows, k), best first. Grid: rows, 8 warps. Shared memory: 8 k floats, 8 k
/// ints, k doubles.
__global__ void __launch_bounds__(256) choose_top(
    const float* top_score, const int* top_token, const unsigned long long* __restrict__ keys, float* best_score,
    int* best_token, int* ids, int* chosen, int* drawn, int* position, int room, int lists, int k, double temperature,
    double top_p) {
    DYNAMIC_SHARED(double, weights);
    float* const merged_score = reinterpret_cast<float*>(weights + k);
    int* const merged_token = reinterpret_cast<int*>(merged_score + 8 * k);
    start_early();
    const int row = blockIdx.x, warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    const int list = warp * WARP + lane;
    const size_t from = (size_t(row) * lists + list) * k, to = size_t(row) * k;
    const bool exists = list < lists;
    merge_lists(exists ? top_score + from : nullptr, exists ? top_token + from : nullptr, k, merged_score + warp * k,
                merged_token + warp * k);
    __syncthreads();
    if (warp > 0) return;
    const bool has_list = lane < 8;
    merge_lists(has_list ? merged_score + lane * k : nullptr, has_list ? merged_token + lane * k : nullptr, k, best_score + to,
                best_token + to);
    __syncwarp();
    for (int i = lane; i < k; i += WARP)
        weights[i] = best_token[to + i] == NO_TOKEN ? 0.0 : exp((double(best_score[to + i]) - best_score[to]) / temperature);
    __syncwarp();
    double total = 0, top_p_total = 0;
    for (int i = 0; i < k; ++i) total += weights[i];
    int count = 0;
    while (count < k && top_p_total < top_p * total) top_p_total += weights[count++];
    const double threshold = philox_uniform(keys[row], drawn[row]) * top_p_total;

    // In the order of ids, the draw is the last token whose sum of weights before it is at most the threshold.
    int passed = 0;
    for (int i = lane; i < count; i += WARP) {
        double before = 0;
        for (int j = 0; j < count; ++j) before += best_token[to + j] < best_token[to + i] ? weights[j] : 0.0;
        passed += before <= threshold;
    }
    passed = warp_sum(passed);  // now all lanes have read drawn[row], which `put` increments
    const Record record{ids, chosen, drawn, position, room};
    if (count == 0 && lane == 0) record.put(row, best_token[to]);
    for (int i = lane; i < count; i += WARP) {
        int rank = 0;
        for (int j = 0; j < count; ++j) rank += best_token[to + j] < best_token[to + i];
        if (rank + 1 == passed) record.put(row, best_token[to + i]);
    }
}

/// Map a score to an unsigned integer of the same order.
__device__ __forceinline__ unsigned ordered(float score) {
    unsigned bits;
    memcpy(&bits, &score, sizeof bits);
    return bits >> 31 ? ~bits : bits | 0x80000000u;
}

/// Sampling weights of one row in fixed point: integers, so their sums are exact in every order. A token that is 2^-40
/// times as likely as the best one, or less, has weight 0.
struct Weights {
    const float* scores;
    const unsigned char* forbidden;
    float max_score, inverse_temperature;

    __device__ __forceinline__ unsigned long long of(int n, unsigned lowest) const {
        if ((forbidden && forbidden[n]) || ordered(scores[n]) < lowest) return 0;
        return static_cast<unsigned long long>(expf((scores[n] - max_score) * inverse_temperature) * 1099511627776.f);
    }
};

/// Sample among all tokens of each row that are not forbidden, after temperature and, if top_p < 1, top-p. Tokens whose
/// score equals that of the last token of the top-p set are kept. `scores` (rows, vocabulary). Grid: rows, 16 warps.
/// Shared memory: 512 + 16 numbers of 8 bytes.
__global__ void __launch_bounds__(512, 1) choose_any(
    const float* scores, const unsigned char* __restrict__ forbidden, const unsigned long long* __restrict__ keys, int* ids,
    int* chosen, int* drawn, int* position, int room, int vocabulary, double temperature, double top_p) {
    DYNAMIC_SHARED(unsigned long long, sums);
    __shared__ Best best_of_warp[WARP];
    start_early();
    const int row = blockIdx.x, thread = threadIdx.x, threads = blockDim.x;
    Weights weights{scores + size_t(row) * vocabulary, forbidden, 0.f, float(1.0 / temperature)};

    Best best = no_token();
    for (int n = thread; n < vocabulary; n += threads)
        if (!(forbidden && forbidden[n])) best.offer(weights.scores[n], n);
    best = warp_best(best);
    if (thread % WARP == 0) best_of_warp[thread / WARP] = best;
    __syncthreads();
    for (int i = 0; i < threads / WARP; ++i) best.offer(best_of_warp[i].score, best_of_warp[i].token);
    weights.max_score = best.score;

    // Top-p: find the highest threshold `lowest` whose tokens reach top_p of the total weight, four bits at a time from
    // the top.
    unsigned lowest = 0;
    unsigned long long all[1] = {0};
    for (int n = thread; n < vocabulary; n += threads) all[0] += weights.of(n, 0);
    block_sum(all, sums);
    for (int shift = 28; shift >= 0 && top_p < 1; shift -= 4) {
        unsigned long long above[15] = {};
        for (int n = thread; n < vocabulary; n += threads) {
            const unsigned long long weight = weights.of(n, lowest);
            const unsigned digit = (ordered(weights.scores[n]) - lowest) >> shift;
#pragma unroll
            for (unsigned i = 0; i < 15; ++i) above[i] += digit > i ? weight : 0;
        }
        block_sum(above, sums);
        unsigned digit = 0;
#pragma unroll
        for (unsigned i = 0; i < 15; ++i)
            if (double(above[i]) >= top_p * double(all[0])) digit = i + 1;
        lowest += digit << shift;
    }

    // Inverse transform sampling: each thread sums a chunk of tokens, and the thread whose chunk passes the threshold
    // finds the token.
    const int chunk = (vocabulary + threads - 1) / threads, first = min(vocabulary, thread * chunk);
    const int last = min(vocabulary, first + chunk);
    unsigned long long mine[1] = {0};
    for (int n = first; n < last; ++n) mine[0] += weights.of(n, lowest);
    unsigned long long total[1] = {mine[0]};  // of the tokens that top-p keeps
    block_sum(total, sums);
    unsigned long long* const of_warps = sums + threads;
    const unsigned long long of_warp = warp_sum(mine[0]);
    if (thread % WARP == 0) of_warps[thread / WARP] = of_warp;
    sums[thread] = mine[0];
    const double uniform = philox_uniform(keys[row], drawn[row]);
    __syncthreads();  // all threads have read drawn[row], which `put` increments
    unsigned long long before = 0;
    for (int i = 0; i < thread / WARP; ++i) before += of_warps[i];
    for (int i = thread / WARP * WARP; i < thread; ++i) before += sums[i];
    const Record record{ids, chosen, drawn, position, room};
    if (total[0] == 0) {
        if (thread == 0) record.put(row, best.token);
        return;
    }
    const unsigned long long threshold = min(static_cast<unsigned long long>(uniform * double(total[0])), total[0] - 1);
    if (before <= threshold && threshold < before + mine[0]) {
        int n = first;
        for (unsigned long long sum = before; (sum += weights.of(n, lowest)) <= threshold;) ++n;
        record.put(row, n);
    }
}
