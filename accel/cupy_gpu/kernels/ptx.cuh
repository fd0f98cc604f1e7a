// Wrappers of PTX instructions: the only code of the kernels that is not plain CUDA C++.
//
// The emulator of the tests defines BLOOMREF_EMULATED and replaces each wrapper, so the emulation tests none of this
// file. Keep the wrappers trivial: only the compiler and a real device check them.
#ifndef BLOOMREF_EMULATED

#define DYNAMIC_SHARED(type, name)                                \
    extern __shared__ __align__(16) unsigned char shared_bytes[]; \
    type* const name = reinterpret_cast<type*>(shared_bytes)

/// Programmatic dependent launch: allow the next kernel of the stream to start once every thread block of this kernel
/// has called this function or exited.
__device__ __forceinline__ void let_next_start() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

/// Programmatic dependent launch: wait until the preceding kernels have completed and their writes are visible. Before
/// this call, a kernel may only read memory that no kernel writes. It returns at once in a kernel that was launched
/// without the attribute.
__device__ __forceinline__ void wait_for_previous() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

/// Prefetch the 128-byte line that contains this address into the L2 cache.
__device__ __forceinline__ void prefetch_line(const void* address) { asm volatile("prefetch.global.L2 [%0];" ::"l"(address)); }

/// Prefetch bytes into the L2 cache, without a thread that waits for them. Address and number are multiples of 16.
__device__ __forceinline__ void prefetch_bytes(const void* first, unsigned bytes) {
#if __CUDA_ARCH__ >= 900
    asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(first), "r"(bytes) : "memory");
#endif
}

/// Increment a counter and return its previous value. What this thread and, before a barrier, its thread block have
/// written is visible to the blocks that count later; they read it after a barrier as well.
__device__ __forceinline__ int count_arrival(int* counter) {
    int before;
    asm volatile("atom.acq_rel.gpu.global.add.s32 %0, [%1], 1;" : "=r"(before) : "l"(counter) : "memory");
    return before;
}

/// Load 16 bytes that other threads of the block also load. `from` is 16-byte aligned. It does not use the read-only
/// path, because the preceding kernel may still write these bytes when a kernel starts early.
__device__ __forceinline__ uint4 load_16(const void* from) { return *static_cast<const uint4*>(from); }

/// Load 16 bytes that no kernel writes and no thread loads again: weights, which bypass the L1 cache and evict nothing
/// from it.
__device__ __forceinline__ uint4 load_16_once(const void* from) {
    uint4 x;
    asm("ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%0, %1, %2, %3}, [%4];"
        : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w)
        : "l"(from));
    return x;
}

/// Address of a pointer in the shared memory window, as PTX expects it.
__device__ __forceinline__ unsigned shared_address(const void* pointer) {
    return static_cast<unsigned>(__cvta_generic_to_shared(pointer));
}

/// Start an asynchronous copy of 16 bytes, or of 16 zeros, from global to shared memory. Before sm_80 the copy is
/// synchronous.
__device__ __forceinline__ void copy_16_async(void* to, const void* from, bool zeros) {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from), "r"(zeros ? 0 : 16)
                 : "memory");
#else
    *static_cast<uint4*>(to) = zeros ? make_uint4(0, 0, 0, 0) : __ldg(static_cast<const uint4*>(from));
#endif
}

/// Start an asynchronous copy of 16 bytes, or of 16 zeros, that no kernel writes and no thread loads again: weights.
__device__ __forceinline__ void copy_16_once_async(void* to, const void* from, bool zeros) {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from),
                 "r"(zeros ? 0 : 16)
                 : "memory");
#else
    copy_16_async(to, from, zeros);
#endif
}

/// Commit the copies that this thread started since the last call as one group.
__device__ __forceinline__ void close_copy_group() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

/// Wait until at most the `LATEST` most recent groups of this thread are pending.
template <int LATEST>
__device__ __forceinline__ void wait_for_copies() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_group %0;" ::"n"(LATEST) : "memory");
#endif
}

/// Load four 8 x 8 matrices of 16-bit numbers. Lane 8 i + r passes the address of row r of matrix i. Lane l receives
/// the elements (l / 4, 2 (l % 4)) and (l / 4, 2 (l % 4) + 1) of each matrix.
__device__ __forceinline__ void load_matrices(unsigned (&x)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
                 : "r"(shared_address(row))
                 : "memory");
}

/// Load four 8 x 8 matrices as `load_matrices` does, each transposed: lane l receives the elements (2 (l % 4), l / 4)
/// and (2 (l % 4) + 1, l / 4).
__device__ __forceinline__ void load_matrices_transposed(unsigned (&x)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
                 : "r"(shared_address(row))
                 : "memory");
}

/// c (16 x 8, float32) += a (16 x 16) b (16 x 8) on the tensor cores. Lane l = 4 g + i holds a[0] = (g, 2i..2i+1), a[1]
/// = (g+8, ..), a[2] = (g, 2i+8..), a[3] = (g+8, 2i+8..); b0 = (2i..2i+1, g), b1 = (2i+8.., g); c[0..1] = (g,
/// 2i..2i+1), c[2..3] = (g+8, 2i..2i+1).
template <class T>
__device__ void multiply_tiles(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1);

template <>
__device__ __forceinline__ void multiply_tiles<__half>(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
#if __CUDA_ARCH__ >= 800
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#else  // sm_75 has m16n8k8 only: eight columns of a at a time
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(b0));
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[2]), "r"(a[3]), "r"(b1));
#endif
}

#if __CUDA_ARCH__ >= 800
template <>
__device__ __forceinline__ void multiply_tiles<__nv_bfloat16>(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
#endif

#endif  // BLOOMREF_EMULATED
