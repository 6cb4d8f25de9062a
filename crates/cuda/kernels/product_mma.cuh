// Products of f16 with f16 and of bf16 with bf16 on the tensor cores.
//
// The order of every sum, whichever kernel computes it and whatever tile it falls into: k is cut into segments of
// SEGMENT; a segment is one chain of matrix steps from zero, step i over the STEP values of k from STEP * i on.
// Segments are added in f32, ascending from zero. Beyond the last column both operands are zero. Within a step the
// order of k is the hardware's: it gives the same bits for any order of the operands, and for mma.sync and wgmma.

static_assert(sizeof(W) == 2 && sizeof(A) == 2, "16-bit formats");

constexpr int SEGMENT = 256, STEP = 16;
// Values of 16 bytes.
constexpr int CHUNK = 8;

// One step, the weights as its 16 rows, the activations as its 8 columns. With g = lane / 4 and t = lane % 4, c[0] and
// c[1] belong to row g and columns 2 t and 2 t + 1, c[2] and c[3] to row g + 8; a0 and a2 hold values of row g, a1 and a3
// of row g + 8, b0 and b1 of column g: those of the k that a0 and a2 have.
template <class T>
__device__ __forceinline__ void mma(float (&c)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1);

template <>
__device__ __forceinline__ void mma<bf16>(float (&c)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

template <>
__device__ __forceinline__ void mma<f16>(float (&c)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// Four matrices of eight rows of 16 bytes in shared memory; lane i holds the address of row i % 8 of matrix i / 8. It
// gets word i % 4 of row i / 4 of each.
__device__ __forceinline__ void load_matrices(u32 (&to)[4], u32 address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(address)
                 : "memory");
}

// Starts copying the first `bytes` of 16; the others become zero.
__device__ __forceinline__ void copy_async_first(u32 shared, const void* global, u32 bytes) {
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(shared), "l"(global), "r"(bytes)
                 : "memory");
}
