// Attention on the tensor cores: the arithmetic that its kernels for few and for many query rows share, to the bit.
//
// Of one query row and one head:
// - A score is one chain of mma.m16n8k16 steps from zero, ascending over the head's dimensions in steps of 16 (beyond
//   the last one both operands are zero), then times the key's stored scale where there is one. Scores are not scaled:
//   the softmax has base 2, and its exponents are score * base_2, with base_2 = scale * log2(e) in f32.
// - A span is SPAN positions that start at a multiple of SPAN. Its largest exponent is the largest score it shows to the
//   row, times base_2; a weight is 2^(score * base_2 - largest), the exponent one fused multiply-add. Positions that the
//   row does not see have the weight zero.
// - The sum of a span's weights: of four chains, chain t takes the positions p with p / 2 % 4 == t, ascending; chains 0
//   and 1, 2 and 3 are added, then the two sums. These are the positions of lane % 4 == t in an accumulator of scores.
// - A weight, times its value's stored scale where there is one, is split into two 16-bit parts (split()). Where scales could
//   take it out of their range (NORMALISED), all weights of the row and the span are first multiplied by a power of two
//   (Normal), so that the largest lies in [1, 2), and the span's outputs are multiplied back.
// - An output of a span is one chain of mma.m16n8k16 steps from zero, over the span's positions in steps of 16,
//   ascending; each step multiplies the values by the high parts, then by the low parts.
// - A section is SECTION spans that start at a multiple of SECTION. The spans that the row sees are merged in ascending
//   order into their section, which starts as nothing seen: relative to the first one's largest exponent, until one
//   exceeds that by more than HEADROOM (reference()), so that what was seen before is hardly ever multiplied again.
// - The sections are merged in ascending order into the row, which starts as nothing seen too (join()), relative to the
//   largest exponent so far. At the end outputs are divided by the sum.
// - Within a step the order of the 16 does not matter to the bits, nor which operand is the 16-row one.
//
// Values at positions that a row does not see must not reach it even if they are not finite: 0 * NaN is NaN. For the same
// reason an infinite value that a row does see makes its output NaN wherever the low part of its weight is zero.
//
// Aliases: those of cache.cuh, with A one of the 16-bit formats and C the same or e4m3; DIM, the values of a head, a
// multiple of 8.

static_assert(sizeof(A) == 2 && sizeof(C) <= 2, "formats of the tensor cores");

// Spans of a section.
constexpr u32 SECTION = 8;
// Steps of a score's chain, and of an output's.
constexpr int DIM_STEPS = (DIM + 15) / 16;
constexpr int SPAN_STEPS = SPAN / 16;

// ------------------------------------------------------------------------------------------------------ fragments

// c += a * b. With g = lane / 4 and t = lane % 4 a lane holds, as pairs of neighbouring k: of the 16-row operand a0 and
// a2 of row g, a1 and a3 of row g + 8, at k = 2 t (a0, a1) and 2 t + 8 (a2, a3); of the 8 columns b0 and b1 of column g
// at the same k; of the result c[0] and c[1] of row g, columns 2 t and 2 t + 1, c[2] and c[3] of row g + 8.
template <class T>
__device__ __forceinline__ void multiply(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1);

template <>
__device__ __forceinline__ void multiply<bf16>(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

template <>
__device__ __forceinline__ void multiply<f16>(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Four 8x8 matrices of 16-bit elements; lane i gives the address of row i % 8 of matrix i / 8, and gets of matrix m the
// elements 2 t and 2 t + 1 of row g.
__device__ __forceinline__ void load_matrices(u32 (&to)[4], u32 address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(address)
                 : "memory");
}
// The same transposed: the elements g of rows 2 t and 2 t + 1.
__device__ __forceinline__ void load_transposed(u32 (&to)[4], u32 address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(address)
                 : "memory");
}

// Two codes of e4m3 as two numbers of a format that has them all.
__device__ __forceinline__ u32 widen(u32 codes, bf16) {
    float pair[2];
    decode_e4m3x2(u16(codes), pair[0], pair[1]);
    // The upper halves of both: what is cut off is zero.
    return __byte_perm(bits_of(pair[0]), bits_of(pair[1]), 0x7632);
}
__device__ __forceinline__ u32 widen(u32 codes, f16) {
#if __CUDA_ARCH__ >= 890
    u32 halves;
    asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(halves) : "h"(u16(codes)));
    return halves;
#else
    float pair[2];
    decode_e4m3x2(u16(codes), pair[0], pair[1]);
    return encode_word(pair, f16{});
#endif
}

// -------------------------------------------------------------------------------------------------------- softmax

__device__ __forceinline__ float base_2(float scale) { return scale * 1.44269504088896340736f; }

// The weight of a score that the row sees; `shift` is finite_or_zero(largest), the largest already times base_2.
__device__ __forceinline__ float weight_of(float score, float base_2, float shift) {
    return power_of_two(mul_add(score, base_2, -shift));
}

// Over the four lanes that share a row.
__device__ __forceinline__ float row_largest(float x) { return warp_max<4>(x); }
__device__ __forceinline__ float row_sum(float x) {
    x = x + __shfl_xor_sync(FULL_WARP, x, 1);
    return x + __shfl_xor_sync(FULL_WARP, x, 2);
}

// Parts in bf16 have exponents enough for scales in f16.
__device__ constexpr bool wide_parts(bf16) { return true; }
__device__ constexpr bool wide_parts(f16) { return false; }
constexpr bool NORMALISED = SCALED && !(wide_parts(A{}) && sizeof(S) == 2);

// The power of two by which a span's weights (times scales) are multiplied, and its inverse for the outputs.
struct Normal {
    float of_weights;
    float of_outputs;
};

__device__ __forceinline__ Normal normal_of(float largest) {
    // The exponent alone; its ends are moved in so that the inverse is a normal number too.
    u32 exponent = bits_of(largest) & 0x7f800000;
    exponent = minimum(maximum(exponent, 1u << 23), 253u << 23);
    return Normal{float_of((254u << 23) - exponent), float_of(exponent)};
}

// Two weights as high parts, rounded to A, and low parts: what is left, rounded to A.
__device__ __forceinline__ void split(float first, float second, u32& high, u32& low) {
    float pair[2] = {first, second}, rounded[2];
    high = encode_word(pair, A{});
    decode_word(high, A{}, rounded);
    float left[2] = {first - rounded[0], second - rounded[1]};
    low = encode_word(left, A{});
}

// -------------------------------------------------------------------------------------------------------- merging

// By how much a span's largest exponent may exceed what its section is relative to: sums and outputs are up to 2^HEADROOM
// times as large then, which is far from the end of their range, and of scores that do not vary by as much few spans exceed it.
constexpr float HEADROOM = 16.0f;

// What a section that was relative to `before` is relative to with a span whose largest exponent this is.
__device__ __forceinline__ float reference(float before, float largest) {
    return largest > before + HEADROOM ? largest : before;
}
// Whether that is another than before, and something was seen before.
__device__ __forceinline__ bool moves(float before, float now) { return before != now && before != -infinity(); }

// The factors for what was seen of the section before, and for the span.
__device__ __forceinline__ float factor_before(float before, float now) {
    return moves(before, now) ? power_of_two(before - finite_or_zero(now)) : 1.0f;
}
__device__ __forceinline__ float factor_of_span(float largest, float now) { return power_of_two(largest - finite_or_zero(now)); }

// Joins what comes next to what was seen before: largest exponents, sums, and the factors for the outputs.
__device__ __forceinline__ Factors join(Softmax& all, Softmax part) {
    float joined = part.largest > all.largest ? part.largest : all.largest;
    float shift = finite_or_zero(joined);
    Factors by{power_of_two(all.largest - shift), power_of_two(part.largest - shift)};
    all = Softmax{joined, mul_add(part.sum, by.part, all.sum * by.before)};
    return by;
}
