// Everything that is not plain CUDA C++: the PTX instructions, each in a wrapper that does nothing else.
//
// The emulator of the tests defines BLOOMREF_EMULATED and brings a twin of each wrapper, so keep them trivial: what stands here
// is proved by the compiler and by a device, and by nothing else.
#ifndef BLOOMREF_EMULATED

#define DYNAMIC_SHARED(type, name)                                \
    extern __shared__ __align__(16) unsigned char shared_bytes[]; \
    type* const name = reinterpret_cast<type*>(shared_bytes)

/// Programmatic dependent launch: the next kernel of the stream may start, as soon as every block of this one is here or done.
__device__ __forceinline__ void let_next_start() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

/// Wait until the kernels before this one are done and what they wrote can be read: a kernel that was started early has it behind
/// nothing but reads of what no kernel writes. For any other kernel it is nothing.
__device__ __forceinline__ void wait_for_previous() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

/// Bring the 128 bytes around this address to the L2 cache.
__device__ __forceinline__ void ask_for_line(const void* of) { asm volatile("prefetch.global.L2 [%0];" ::"l"(of)); }

/// 16 bytes that other threads of the block will ask for as well. `from` is 16-byte aligned. Not through the read-only path: a kernel
/// that is started early is there while the one before it still writes them.
__device__ __forceinline__ uint4 load_16(const void* from) { return *static_cast<const uint4*>(from); }

/// 16 bytes that no kernel writes and nobody will ask for again: weights pass through without pushing anything out of the L1 cache.
__device__ __forceinline__ uint4 load_16_once(const void* from) {
    uint4 x;
    asm("ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%0, %1, %2, %3}, [%4];"
        : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w)
        : "l"(from));
    return x;
}

/// The address of a pointer to shared memory in the window that PTX counts in.
__device__ __forceinline__ unsigned shared_address(const void* pointer) {
    return static_cast<unsigned>(__cvta_generic_to_shared(pointer));
}

/// Start to copy 16 bytes from global to shared memory, or 16 zeros. Before sm_80 the copy is done at once.
__device__ __forceinline__ void copy_16_async(void* to, const void* from, bool zeros) {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from), "r"(zeros ? 0 : 16)
                 : "memory");
#else
    *static_cast<uint4*>(to) = zeros ? make_uint4(0, 0, 0, 0) : __ldg(static_cast<const uint4*>(from));
#endif
}

/// The copies that this thread started since the last call are one group.
__device__ __forceinline__ void close_copy_group() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

/// Wait until at most the `LATEST` youngest groups of this thread are still on their way.
template <int LATEST>
__device__ __forceinline__ void wait_for_copies() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_group %0;" ::"n"(LATEST) : "memory");
#endif
}

/// Four 8 x 8 matrices of 16-bit numbers; lane 8 i + r gives the address of row r of matrix i. Lane l receives of each the
/// elements (l / 4, 2 (l % 4)) and (l / 4, 2 (l % 4) + 1).
__device__ __forceinline__ void load_matrices(unsigned (&x)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
                 : "r"(shared_address(row))
                 : "memory");
}

/// The same, each matrix transposed: elements (2 (l % 4), l / 4) and (2 (l % 4) + 1, l / 4).
__device__ __forceinline__ void load_matrices_transposed(unsigned (&x)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
                 : "r"(shared_address(row))
                 : "memory");
}

/// c (16 x 8, float32) += a (16 x 16) b (16 x 8) on the tensor cores. Lane l = 4 g + i holds
/// a[0] = (g, 2i..2i+1), a[1] = (g+8, ..), a[2] = (g, 2i+8..), a[3] = (g+8, 2i+8..); b0 = (2i..2i+1, g), b1 = (2i+8.., g);
/// c[0..1] = (g, 2i..2i+1), c[2..3] = (g+8, 2i..2i+1).
template <class T>
__device__ void multiply_tiles(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1);

template <>
__device__ __forceinline__ void multiply_tiles<__half>(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
#if __CUDA_ARCH__ >= 800
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#else  // sm_75 multiplies eight columns of a at a time
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
