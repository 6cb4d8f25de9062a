// Rank keys: the logit, in descending order, above the token. Smaller is better.

using key = u64;
constexpr key NOTHING = ~0ull;

// 0, which no number has, for a NaN or an infinity.
__device__ __forceinline__ key rank_key(float logit, u32 token) {
    // Adding 0 makes -0 to 0.
    u32 bits = bits_of(logit + 0.0f);
    u32 descending = bits >> 31 ? bits : ~bits & 0x7fffffff;
    bool finite = (bits & 0x7f800000) != 0x7f800000;
    return finite ? u64(descending) << 32 | token : 0;
}

__device__ __forceinline__ float logit_of(key k) {
    u32 descending = u32(k >> 32);
    return float_of(descending >> 31 ? descending : ~descending & 0x7fffffff);
}

__device__ __forceinline__ key warp_best(key best) {
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2) best = minimum(best, __shfl_xor_sync(FULL_WARP, best, offset));
    return best;
}
