// Products of f16 with f16 and of bf16 with bf16 on the tensor cores.
//
// The order of every sum, whichever kernel computes it and whatever tile it falls into: k is cut into segments of
// SEGMENT; a segment is one chain of mma.m16n8k16 steps from zero, ascending over groups of 32 k; of a group, the
// first step takes the k with k / 4 even and the second those with k / 4 odd, so that what one lane needs of a row
// for both lies in 16 neighbouring bytes. Segments are added in f32, ascending from zero. Beyond the last column both
// operands are zero.
//
// Weights are the 16-row operand of a step, activations its 8 columns. With g = lane / 4 and t = lane % 4 a lane
// holds of a group of 32 k the values [8 t, 8 t + 8) of rows g and g + 8 of the weights and of column g.

static_assert(sizeof(W) == 2 && sizeof(A) == 2, "16-bit formats");

constexpr int SEGMENT = 256;
// Values that a step of the loops takes, of which each of four lanes holds a chunk.
constexpr int GROUP = 32, CHUNK = 8;
constexpr int GROUPS = SEGMENT / GROUP;

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

// The two steps of a group: rows g and g + 8 of the weights, column g of the activations. Afterwards c[0] and c[1]
// belong to row g and columns 2 t and 2 t + 1, c[2] and c[3] to row g + 8.
__device__ __forceinline__ void multiply_first(float (&c)[4], const uint4& low, const uint4& high, const uint4& x) {
    mma<W>(c, low.x, high.x, low.y, high.y, x.x, x.y);
}
__device__ __forceinline__ void multiply_second(float (&c)[4], const uint4& low, const uint4& high, const uint4& x) {
    mma<W>(c, low.z, high.z, low.w, high.w, x.z, x.w);
}
