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

// --- sampling among all tokens ---
//
// The tokens of a row are divided among `parts` thread blocks (at most 256) of 256 threads, in chunks. `any_best` finds
// the best token of each part. If top_p < 1, `any_digits` runs once for each 8-bit digit of a score, the highest first,
// and adds the weights of the scores that begin with the digits found before, by their next digit. `any_sums` adds the
// weights that top-p keeps in each part, and `choose_any` draws the part, then the token. The sums are integers, so they
// are exact in every order.

typedef unsigned long long Sum;
constexpr int THREADS = 256, DIGITS = 4, BINS = 256;

/// Part of a row: the tokens [first, last).
struct Part {
    int first, last;
    __device__ __forceinline__ Part(int part, int parts, int vocabulary) {
        const int chunk = (vocabulary + parts - 1) / parts;
        first = min(vocabulary, part * chunk);
        last = min(vocabulary, first + chunk);
    }
};

/// Reduce the threads' candidates to the best one, returned in every thread. Called by the whole thread block, once.
__device__ __forceinline__ Best block_best(Best best) {
    __shared__ Best of_warp[THREADS / WARP];
    best = warp_best(best);
    if (threadIdx.x % WARP == 0) of_warp[threadIdx.x / WARP] = best;
    __syncthreads();
    for (int i = 0; i < THREADS / WARP; ++i) best.offer(of_warp[i].score, of_warp[i].token);
    return best;
}

/// The best token of a row, from those of its parts (rows, parts). Called by the whole thread block, once.
__device__ __forceinline__ Best row_best(const float* score, const int* token, int row, int parts) {
    const size_t at = size_t(row) * parts + threadIdx.x;
    Best best = no_token();
    if (threadIdx.x < parts) best.offer(score[at], token[at]);
    return block_best(best);
}

/// Sampling weights of one row in fixed point. A token that is 2^-40 times as likely as the best one, or less, has
/// weight 0.
struct Weights {
    const float* scores;
    const unsigned char* forbidden;
    float max_score, inverse_temperature;

    __device__ __forceinline__ Sum of(int n, unsigned lowest) const {
        if ((forbidden && forbidden[n]) || ordered(scores[n]) < lowest) return 0;
        const float weight = expf((scores[n] - max_score) * inverse_temperature) * 1099511627776.f;
        return weight >= 1.f ? static_cast<Sum>(weight) : 0;
    }
};

/// Add the numbers of all threads in order: `before` is the sum before this thread's, `total` that of all. `shared`: 256 +
/// 8 numbers. Called by the whole thread block.
struct Ordered {
    Sum before, total;
    __device__ __forceinline__ Ordered(Sum mine, Sum* shared) : before(0), total(0) {
        const int warp = threadIdx.x / WARP;
        const Sum of_warp = warp_sum(mine);
        shared[threadIdx.x] = mine;
        if (threadIdx.x % WARP == 0) shared[THREADS + warp] = of_warp;
        __syncthreads();
        for (int i = 0; i < THREADS / WARP; ++i) {
            total += shared[THREADS + i];
            before += i < warp ? shared[THREADS + i] : 0;
        }
        for (int i = warp * WARP; i < threadIdx.x; ++i) before += shared[i];
        __syncthreads();  // the shared numbers may be written again
    }
};

/// The `count` highest digits of the lowest score that top-p keeps, from a row's sums by digit (DIGITS, BINS); the other
/// digits are 0. It is the highest threshold whose tokens reach top_p of the total weight. Called by the whole thread
/// block.
__device__ __forceinline__ unsigned lowest_kept(const Sum* by_digit, int count, double top_p, Sum* shared) {
    __shared__ Sum above_next;
    __shared__ unsigned digit;
    unsigned lowest = 0;
    Sum above = 0, all = 0;  // weights of the scores above those that begin with the digits found; of all scores
    for (int d = 0; d < count; ++d) {
        const Sum mine = by_digit[d * BINS + threadIdx.x];
        const Ordered sums(mine, shared);
        if (d == 0) all = sums.total;
        const Sum higher = above + (sums.total - sums.before - mine);
        const double needed = top_p * double(all);
        const bool reaches = double(higher + mine) >= needed;  // true for the lowest digits
        if (reaches && (threadIdx.x == BINS - 1 || double(higher) < needed)) {
            digit = threadIdx.x;
            above_next = higher;
        }
        __syncthreads();
        above = above_next;
        lowest |= digit << (8 * (DIGITS - 1 - d));
        __syncthreads();  // the digit may be written again
    }
    return lowest;
}

/// Write the best token of each part that is not forbidden to best_score and best_token (rows, parts), and zeros to
/// by_digit (rows, DIGITS, BINS). Grid: (parts, rows), 8 warps.
__global__ void __launch_bounds__(256) any_best(
    const float* scores, const unsigned char* __restrict__ forbidden, float* best_score, int* best_token, Sum* by_digit, int vocabulary) {
    start_early();
    const int row = blockIdx.y, parts = gridDim.x;
    const Part part(blockIdx.x, parts, vocabulary);
    const float* const mine = scores + size_t(row) * vocabulary;
    Best best = no_token();
    for (int n = part.first + threadIdx.x; n < part.last; n += THREADS)
        if (!(forbidden && forbidden[n])) best.offer(mine[n], n);
    best = block_best(best);
    if (threadIdx.x == 0) {
        best_score[size_t(row) * parts + blockIdx.x] = best.score;
        best_token[size_t(row) * parts + blockIdx.x] = best.token;
    }
    for (int i = blockIdx.x * THREADS + threadIdx.x; i < DIGITS * BINS; i += parts * THREADS) by_digit[size_t(row) * DIGITS * BINS + i] = 0;
}

/// Add the weights of the scores that begin with the `digit` digits found so far to by_digit[row][digit], by their next
/// digit. Grid: (parts, rows), 8 warps.
__global__ void __launch_bounds__(256) any_digits(
    const float* scores, const unsigned char* __restrict__ forbidden, const float* best_score, const int* best_token, Sum* by_digit,
    int vocabulary, int digit, double temperature, double top_p) {
    __shared__ Sum shared[THREADS + THREADS / WARP], bins[BINS];
    start_early();
    const int row = blockIdx.y, shift = 8 * (DIGITS - 1 - digit);
    const Part part(blockIdx.x, gridDim.x, vocabulary);
    Sum* const sums = by_digit + size_t(row) * DIGITS * BINS;
    bins[threadIdx.x] = 0;
    const float max_score = row_best(best_score, best_token, row, gridDim.x).score;
    const Weights weights{scores + size_t(row) * vocabulary, forbidden, max_score, float(1.0 / temperature)};
    const unsigned lowest = lowest_kept(sums, digit, top_p, shared);
    for (int n = part.first + threadIdx.x; n < part.last; n += THREADS) {
        const unsigned score = ordered(weights.scores[n]);
        const bool begins = digit == 0 || (score ^ lowest) >> (shift + 8) == 0;
        const Sum weight = begins ? weights.of(n, 0) : 0;
        if (weight) atomicAdd(bins + (score >> shift & (BINS - 1)), weight);
    }
    __syncthreads();
    if (bins[threadIdx.x]) atomicAdd(sums + digit * BINS + threadIdx.x, bins[threadIdx.x]);
}

/// Write the lowest score that top-p keeps, as `ordered` has it, to lowest (rows), and the sum of the weights of each
/// part from there on to kept (rows, parts). Grid: (parts, rows), 8 warps.
__global__ void __launch_bounds__(256) any_sums(
    const float* scores, const unsigned char* __restrict__ forbidden, const float* best_score, const int* best_token, const Sum* by_digit,
    Sum* kept, unsigned* lowest, int vocabulary, double temperature, double top_p) {
    __shared__ Sum shared[THREADS + THREADS / WARP];
    start_early();
    const int row = blockIdx.y, parts = gridDim.x;
    const Part part(blockIdx.x, parts, vocabulary);
    const float max_score = row_best(best_score, best_token, row, parts).score;
    const Weights weights{scores + size_t(row) * vocabulary, forbidden, max_score, float(1.0 / temperature)};
    const unsigned from = top_p < 1 ? lowest_kept(by_digit + size_t(row) * DIGITS * BINS, DIGITS, top_p, shared) : 0;
    Sum mine = 0;
    for (int n = part.first + threadIdx.x; n < part.last; n += THREADS) mine += weights.of(n, from);
    const Ordered sums(mine, shared);
    if (threadIdx.x != 0) return;
    kept[size_t(row) * parts + blockIdx.x] = sums.total;
    if (blockIdx.x == 0) lowest[row] = from;
}

/// Draw a token of each row among those that `any_sums` kept, by inverse transform sampling in the order of ids. Tokens
/// whose score equals that of the last token of the top-p set are kept. Grid: rows, 8 warps.
__global__ void __launch_bounds__(256) choose_any(
    const float* scores, const unsigned char* __restrict__ forbidden, const unsigned long long* __restrict__ keys,
    const float* best_score, const int* best_token, const Sum* kept, const unsigned* lowest, int* ids, int* chosen, int* drawn,
    int* position, int room, int parts, int vocabulary, double temperature) {
    __shared__ Sum shared[THREADS + THREADS / WARP], rest;
    __shared__ int drawn_part;
    start_early();
    const int row = blockIdx.x, thread = threadIdx.x;
    const Best best = row_best(best_score, best_token, row, parts);
    const Weights weights{scores + size_t(row) * vocabulary, forbidden, best.score, float(1.0 / temperature)};
    const Sum of_part = thread < parts ? kept[size_t(row) * parts + thread] : 0;
    const double uniform = philox_uniform(keys[row], drawn[row]);
    const Ordered in_parts(of_part, shared);  // all threads have read drawn[row], which `put` increments
    const Record record{ids, chosen, drawn, position, room};
    if (in_parts.total == 0) {
        if (thread == 0) record.put(row, best.token);
        return;
    }
    const Sum threshold = min(static_cast<Sum>(uniform * double(in_parts.total)), in_parts.total - 1);
    if (in_parts.before <= threshold && threshold < in_parts.before + of_part) {
        drawn_part = thread;
        rest = threshold - in_parts.before;
    }
    __syncthreads();
    const Part part(drawn_part, parts, vocabulary);
    const int chunk = (part.last - part.first + THREADS - 1) / THREADS, first = part.first + thread * chunk;
    const int last = min(part.last, first + chunk);
    const unsigned from = lowest[row];
    Sum mine = 0;
    for (int n = first; n < last; ++n) mine += weights.of(n, from);
    const Ordered in_chunks(mine, shared);
    if (in_chunks.before <= rest && rest < in_chunks.before + mine) {
        int n = first;
        for (Sum sum = in_chunks.before; (sum += weights.of(n, from)) <= rest;) ++n;
        record.put(row, n);
    }
}
