// Runs CUDA C++ on the CPU, one thread block at a time. Each thread of the block is a fiber.
//
// It detects missing and divergent barriers and waits (threads run in random order), lanes that miss a warp-wide
// operation, wrong lanes, accesses beyond the requested shared memory, misaligned 16-byte loads, and reads of
// uninitialised memory (which is NaN). It cannot detect mistakes in the wrappers of ptx.cuh, which are replaced here,
// races between thread blocks, and slow code.
#pragma once
#include <cuda_runtime_api.h>
#include <math.h>
#include <setjmp.h>
#include <stdint.h>
#include <string.h>
#include <ucontext.h>
#include <vector_functions.h>

#include <algorithm>
#include <functional>
#include <random>
#include <string>
#include <utility>
#include <vector>

#define BLOOMREF_EMULATED
#undef __global__
#undef __device__
#undef __shared__
#undef __forceinline__
#undef __launch_bounds__
#define __global__ inline
#define __device__
#define __shared__ static  // one thread block at a time
#define __forceinline__ inline
#define __launch_bounds__(...)

namespace emulated {

enum State { READY, AT_BARRIER, IN_EXCHANGE, BEFORE_PREVIOUS, DONE };
constexpr int WARP_SIZE = 32, MAX_THREADS = 1024, STACK = 256 * 1024, GUARD = 64 * 1024;

struct Copy {
    void* to;
    const void* from;
    bool zeros;
};

struct Thread {
    State state = READY;
    int number = 0, barrier = 0, exchange = 0;
    const void* in = nullptr;
    void* out = nullptr;
    uint3 index{};
    std::vector<std::vector<Copy>> copies{{}};  // pending groups of copies; the last one is still open
    bool started = false, has_waited = false;
    jmp_buf place;
    ucontext_t first;
    std::vector<char> stack;
};

struct Failure {
    std::string text;
};

struct Block {
    std::vector<Thread> threads;
    Thread* running = nullptr;
    std::function<void()> body;
    uint3 index{};
    dim3 size, grid;
    std::vector<unsigned char> shared;
    unsigned char* shared_start = nullptr;
    int in_exchange[MAX_THREADS / WARP_SIZE] = {};
    jmp_buf scheduler;
    ucontext_t scheduler_context;
    std::string failure;
    std::mt19937* random = nullptr;  // null: run everything in order
    std::function<void()> previous;  // runs the preceding kernel, if this one started early and it has not run yet
    bool is_early = false;
};

inline Block block, aside;

/// Yield to the scheduler until it resumes this thread.
inline void leave() {
    Thread* const me = block.running;
    if (!_setjmp(me->place)) _longjmp(block.scheduler, 1);
}

inline void wait_as(State state) {
    block.running->state = state;
    leave();
}

[[noreturn]] inline void fail(const std::string& text) {
    if (block.failure.empty()) block.failure = text;
    for (;;) wait_as(DONE);
}

inline void life() {
    for (;;) {
        block.running->has_waited = false;
        block.body();
        if (block.is_early && !block.running->has_waited) fail("a kernel that was started early never waits for the one before");
        block.running->copies.assign(1, {});
        wait_as(DONE);
    }
}

inline void resume(Thread& thread) {
    block.running = &thread;
    if (_setjmp(block.scheduler)) return;
    if (thread.started) _longjmp(thread.place, 1);
    thread.started = true;
    thread.stack.resize(STACK);
    getcontext(&thread.first);
    thread.first.uc_stack.ss_sp = thread.stack.data();
    thread.first.uc_stack.ss_size = STACK;
    thread.first.uc_link = nullptr;
    makecontext(&thread.first, life, 0);
    setcontext(&thread.first);
}

/// Release the threads if all live threads wait at one barrier. Returns false if they do not.
inline bool release_barrier() {
    int line = 0;
    for (const Thread& thread : block.threads) {
        if (thread.state == DONE) continue;
        if (thread.state != AT_BARRIER) return false;
        if (line && line != thread.barrier) block.failure = "threads of a block wait at different barriers";
        line = thread.barrier;
    }
    for (Thread& thread : block.threads)
        if (thread.state == AT_BARRIER) thread.state = READY;
    return line != 0;
}

/// Run the preceding kernel, once every thread waits for it, and release the threads. Returns false if there is none.
inline bool release_previous() {
    if (!block.previous) return false;
    const auto previous = std::exchange(block.previous, nullptr);
    std::swap(aside, block);
    previous();
    std::swap(aside, block);
    for (Thread& thread : block.threads)
        if (thread.state == BEFORE_PREVIOUS) thread.state = READY;
    return true;
}

/// Run the threads of one warp until each waits for others. Returns true if any thread made progress.
inline bool run_warp(int warp) {
    int lanes[WARP_SIZE];
    for (int lane = 0; lane < WARP_SIZE; ++lane) lanes[lane] = lane;
    bool moved = false;
    for (bool again = true; again && block.failure.empty();) {
        again = false;
        if (block.random) std::shuffle(lanes, lanes + WARP_SIZE, *block.random);
        for (const int lane : lanes) {
            Thread& thread = block.threads[warp * WARP_SIZE + lane];
            if (thread.state != READY || !block.failure.empty()) continue;
            resume(thread);
            moved = again = true;
        }
    }
    return moved;
}

/// Run a thread block. Warps take turns in random order, each until it waits for others, so that a warp without a
/// barrier gets as far ahead as possible.
inline void run_block() {
    std::vector<int> warps(block.threads.size() / WARP_SIZE);
    for (size_t i = 0; i < warps.size(); ++i) warps[i] = int(i);
    for (Thread& thread : block.threads) thread.state = READY;
    std::fill(std::begin(block.in_exchange), std::end(block.in_exchange), 0);
    for (bool all_done = false; !all_done && block.failure.empty();) {
        if (block.random) std::shuffle(warps.begin(), warps.end(), *block.random);
        bool moved = false;
        for (const int warp : warps) moved |= run_warp(warp);
        all_done = true;
        for (const Thread& thread : block.threads) all_done &= thread.state == DONE;
        if (!all_done && !release_barrier() && !moved && !release_previous() && block.failure.empty())
            block.failure = "deadlock: some threads wait at a barrier or in a warp's exchange for others that never come";
    }
}

/// Fill shared memory with NaN at the start of a block, and put a guard zone after it.
inline void prepare_shared(size_t bytes) {
    block.shared.assign(bytes + GUARD + 64, 0xff);
    block.shared_start = reinterpret_cast<unsigned char*>((uintptr_t(block.shared.data()) + 63) & ~uintptr_t(63));
}

inline void check_shared(size_t bytes) {
    const unsigned char* const guard = block.shared_start + bytes;
    const bool untouched = guard[0] == 0xff && !memcmp(guard, guard + 1, GUARD - 1);
    if (!untouched && block.failure.empty()) block.failure = "written beyond the shared memory";
}

/// Run a grid. Returns the reason of a failure, or an empty string. A seed of 0 runs everything in order. `previous`,
/// if any, runs the preceding kernel; it is called when all threads wait for it.
inline std::string run_grid(
    dim3 grid, int threads, size_t shared, unsigned seed, void (*previous)(), std::function<void()> body) {
    if (threads % WARP_SIZE || threads > MAX_THREADS) return "a block is whole warps, at most 1024 threads";
    std::mt19937 random(seed);
    block.random = seed ? &random : nullptr;
    block.failure.clear();
    block.previous = previous;
    block.is_early = previous != nullptr;
    block.body = std::move(body);
    block.grid = grid;
    block.size = dim3(threads);
    if (int(block.threads.size()) != threads) block.threads = std::vector<Thread>(threads);
    for (int i = 0; i < threads; ++i) block.threads[i].number = block.threads[i].index.x = i;
    std::vector<unsigned> blocks(size_t(grid.x) * grid.y * grid.z);
    for (size_t i = 0; i < blocks.size(); ++i) blocks[i] = unsigned(i);
    if (seed) std::shuffle(blocks.begin(), blocks.end(), random);
    for (const unsigned i : blocks) {
        block.index = {i % grid.x, i / grid.x % grid.y, i / grid.x / grid.y};
        prepare_shared(shared);
        run_block();
        check_shared(shared);
        if (!block.failure.empty()) break;
    }
    if (!block.failure.empty()) block.threads.clear();  // unfinished fibers cannot be reused
    return block.failure;
}

/// Warp-wide operation: each of the 32 lanes stores its input, and the last one computes the outputs of all.
template <class In, class Out, class Compute>
Out exchange(int kind, const In& in, Compute compute) {
    Thread* const me = block.running;
    const int warp = me->number / WARP_SIZE;
    Out out{};
    me->in = &in;
    me->out = &out;
    me->exchange = kind;
    if (++block.in_exchange[warp] < WARP_SIZE) {
        wait_as(IN_EXCHANGE);
        return out;
    }
    block.in_exchange[warp] = 0;
    const In* ins[WARP_SIZE];
    Out* outs[WARP_SIZE];
    for (int lane = 0; lane < WARP_SIZE; ++lane) {
        Thread& other = block.threads[warp * WARP_SIZE + lane];
        if (other.exchange != kind) fail("the lanes of a warp are in different exchanges");
        ins[lane] = static_cast<const In*>(other.in);
        outs[lane] = static_cast<Out*>(other.out);
    }
    compute(ins, outs);
    for (int lane = 0; lane < WARP_SIZE; ++lane) block.threads[warp * WARP_SIZE + lane].state = READY;
    return out;
}

inline void require_aligned(const void* address) {
    if (uintptr_t(address) % 16) fail("16 bytes at an address that is no multiple of 16");
}

inline uint4 load(const void* from) {
    require_aligned(from);
    uint4 x;
    memcpy(&x, from, sizeof x);
    return x;
}

/// Call a kernel with an array of pointers to its arguments, as cuLaunchKernel does.
template <class... P, size_t... I>
std::function<void(void**)> unpacked(void (*kernel)(P...), std::index_sequence<I...>) {
    return [kernel](void** arguments) { kernel(*static_cast<P*>(arguments[I])...); };
}
template <class... P>
std::function<void(void**)> entry(void (*kernel)(P...)) {
    return unpacked(kernel, std::index_sequence_for<P...>());
}

}  // namespace emulated

#define threadIdx (emulated::block.running->index)
#define blockIdx (emulated::block.index)
#define blockDim (emulated::block.size)
#define gridDim (emulated::block.grid)
#define DYNAMIC_SHARED(type, name) type* const name = reinterpret_cast<type*>(emulated::block.shared_start)
#define __syncthreads() (emulated::block.running->barrier = __LINE__, emulated::wait_as(emulated::AT_BARRIER))

using std::max;
using std::min;

inline void __threadfence() {}

template <class T>
T atomicAdd(T* to, T x) {
    const T before = *to;
    *to = before + x;
    return before;
}

inline int count_arrival(int* counter) { return atomicAdd(counter, 1); }

template <class T>
T __shfl_sync(unsigned, T x, int from) {
    return emulated::exchange<T, T>(2000 + from, x, [from](const T** in, T** out) {
        for (int lane = 0; lane < emulated::WARP_SIZE; ++lane) *out[lane] = *in[from];
    });
}

template <class T>
T __shfl_xor_sync(unsigned, T x, int lanes) {
    return emulated::exchange<T, T>(1000 + lanes, x, [lanes](const T** in, T** out) {
        for (int lane = 0; lane < emulated::WARP_SIZE; ++lane) *out[lane] = *in[lane ^ lanes];
    });
}

inline void __syncwarp() {
    emulated::exchange<int, int>(2000, 0, [](const int**, int**) {});
}

inline unsigned long long __umul64hi(unsigned long long x, unsigned long long y) {
    return static_cast<unsigned long long>((unsigned __int128)x * y >> 64);
}

#include <cuda_bf16.h>
#include <cuda_fp16.h>

// Replacements of the wrappers of ptx.cuh, in the same order.

inline void let_next_start() {}
inline void wait_for_previous() {
    if (emulated::block.previous) emulated::wait_as(emulated::BEFORE_PREVIOUS);
    emulated::block.running->has_waited = true;
}
inline void prefetch_line(const void*) {}

inline void prefetch_bytes(const void* first, unsigned bytes) {
    emulated::require_aligned(first);
    volatile unsigned char read = 0;  // both ends must be readable, as far as the sanitizers can tell
    if (bytes) read = static_cast<const unsigned char*>(first)[0] + static_cast<const unsigned char*>(first)[bytes - 1];
    if (bytes % 16) emulated::fail("a prefetch of bytes that are no multiple of 16");
}

inline uint4 load_16(const void* from) { return emulated::load(from); }
inline uint4 load_16_once(const void* from) { return emulated::load(from); }

inline void do_copy(const emulated::Copy& copy) {
    if (copy.zeros)
        memset(copy.to, 0, 16);
    else
        memcpy(copy.to, copy.from, 16);
}

/// A copy happens at random either at once or when it is waited for, so that kernels cannot rely on either.
inline void copy_16_async(void* to, const void* from, bool zeros) {
    emulated::require_aligned(to);
    emulated::require_aligned(from);
    const emulated::Copy copy{to, from, zeros};
    if (emulated::block.random && (*emulated::block.random)() % 2)
        do_copy(copy);
    else
        emulated::block.running->copies.back().push_back(copy);
}

inline void copy_16_once_async(void* to, const void* from, bool zeros) { copy_16_async(to, from, zeros); }

inline void close_copy_group() { emulated::block.running->copies.emplace_back(); }

template <int LATEST>
void wait_for_copies() {
    auto& groups = emulated::block.running->copies;
    const size_t open = 1;
    while (groups.size() > LATEST + open) {
        for (const emulated::Copy& copy : groups.front()) do_copy(copy);
        groups.erase(groups.begin());
    }
}

struct FourMatrices {
    unsigned x[4];
};

template <bool TRANSPOSED>
void load_matrices_as(unsigned (&x)[4], const void* row) {
    emulated::require_aligned(row);
    const auto four = emulated::exchange<const void*, FourMatrices>(
        1 + TRANSPOSED, row, [](const void* const** in, FourMatrices** out) {
            for (int lane = 0; lane < emulated::WARP_SIZE; ++lane) {
                for (int matrix = 0; matrix < 4; ++matrix) {
                    const auto element = [&](int r, int c) {
                        if (TRANSPOSED) std::swap(r, c);
                        return unsigned(static_cast<const uint16_t*>(*in[8 * matrix + r])[c]);
                    };
                    const int r = lane / 4, c = lane % 4 * 2;
                    out[lane]->x[matrix] = element(r, c) | element(r, c + 1) << 16;
                }
            }
        });
    memcpy(x, four.x, sizeof x);
}
inline void load_matrices(unsigned (&x)[4], const void* row) { load_matrices_as<false>(x, row); }
inline void load_matrices_transposed(unsigned (&x)[4], const void* row) { load_matrices_as<true>(x, row); }

struct Tiles {
    unsigned a[4], b[2];
    float c[4];
};

inline float widened(__half x) { return __half2float(x); }
inline float widened(__nv_bfloat16 x) { return __bfloat162float(x); }

template <class T>
void multiply_tiles(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    const Tiles mine{{a[0], a[1], a[2], a[3]}, {b0, b1}, {c[0], c[1], c[2], c[3]}};
    struct Result {
        float c[4];
    };
    const Result result = emulated::exchange<Tiles, Result>(3, mine, [](const Tiles** in, Result** out) {
        const auto number = [](unsigned bits, int i) {
            const uint16_t half = uint16_t(i ? bits >> 16 : bits);
            T x;
            memcpy(&x, &half, sizeof x);
            return widened(x);
        };
        float left[16][16], right[16][8];
        for (int lane = 0; lane < emulated::WARP_SIZE; ++lane) {
            const int g = lane / 4, i = lane % 4 * 2;
            for (int e = 0; e < 2; ++e) {
                for (int part = 0; part < 4; ++part)
                    left[g + part % 2 * 8][i + part / 2 * 8 + e] = number(in[lane]->a[part], e);
                for (int part = 0; part < 2; ++part) right[i + part * 8 + e][g] = number(in[lane]->b[part], e);
            }
        }
        for (int lane = 0; lane < emulated::WARP_SIZE; ++lane) {
            for (int e = 0; e < 4; ++e) {
                float sum = in[lane]->c[e];
                for (int k = 0; k < 16; ++k) sum += left[lane / 4 + e / 2 * 8][k] * right[k][lane % 4 * 2 + e % 2];
                out[lane]->c[e] = sum;
            }
        }
    });
    memcpy(c, result.c, sizeof c);
}
