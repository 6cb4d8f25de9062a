// What every kernel starts with: storage formats, exact decoding, encoding with one rounding, 16-byte packs,
// reductions in a fixed order, and the exponential. NVRTC compiles it in front of an alias block and one kernel file;
// nothing is included.
//
// Kernels are compiled with --fmad=false: a contraction is written as mul_add(), everything else is one rounding per
// operation. Subnormals are kept, division and square root are correctly rounded.

using u8 = unsigned char;
using u16 = unsigned short;
using u32 = unsigned int;
using u64 = unsigned long long;
using i32 = int;

static_assert(sizeof(u16) == 2 && sizeof(u32) == 4 && sizeof(u64) == 8 && sizeof(void*) == 8, "sizes of the ABI");

// ---------------------------------------------------------------------------------------------------- arithmetic

__device__ __forceinline__ u32 bits_of(float x) { return __float_as_uint(x); }
__device__ __forceinline__ float float_of(u32 bits) { return __uint_as_float(bits); }

// a * b + c with one rounding.
__device__ __forceinline__ float mul_add(float a, float b, float c) { return __fmaf_rn(a, b, c); }
__device__ __forceinline__ float divide(float a, float b) { return __fdiv_rn(a, b); }
__device__ __forceinline__ float square_root(float x) { return __fsqrt_rn(x); }

__device__ __forceinline__ float infinity() { return float_of(0x7f800000); }

// The larger number; a NaN loses to a number.
__device__ __forceinline__ float larger(float a, float b) { return fmaxf(a, b); }

__device__ __forceinline__ bool is_nan(float x) { return x != x; }

template <class T>
__host__ __device__ constexpr T minimum(T a, T b) { return a < b ? a : b; }
template <class T>
__host__ __device__ constexpr T maximum(T a, T b) { return a < b ? b : a; }
__host__ __device__ constexpr u32 div_ceil(u32 a, u32 b) { return (a + b - 1) / b; }
__host__ __device__ constexpr u32 round_up(u32 a, u32 b) { return div_ceil(a, b) * b; }

// Zero in place of minus infinity: what is subtracted from scores that may all be minus infinity.
__device__ __forceinline__ float finite_or_zero(float x) { return x == -infinity() ? 0.0f : x; }

// ------------------------------------------------------------------------------------------------------- formats

// Storage formats are the raw bits; arithmetic is done on what to_f32 returns.
using f32 = float;
struct f16 { u16 bits; };
struct bf16 { u16 bits; };
struct e4m3 { u8 bits; };

static_assert(sizeof(f16) == 2 && sizeof(bf16) == 2 && sizeof(e4m3) == 1, "formats are their bits");

__device__ __forceinline__ float to_f32(f32 x) { return x; }

__device__ __forceinline__ float to_f32(f16 x) {
    float result;
    asm("cvt.f32.f16 %0, %1;" : "=f"(result) : "h"(x.bits));
    return result;
}

__device__ __forceinline__ float to_f32(bf16 x) { return float_of(u32(x.bits) << 16); }

// Two neighbouring e4m3 codes, the lower byte first.
__device__ __forceinline__ void decode_e4m3x2(u16 codes, float& first, float& second) {
#if __CUDA_ARCH__ >= 890
    // Every E4M3 number is an f16 number.
    u32 halves;
    asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(halves) : "h"(codes));
    first = to_f32(f16{u16(halves)});
    second = to_f32(f16{u16(halves >> 16)});
#else
    // Exponent and mantissa at the place of f32's: the exponent is then too small by 127 - 7 = 120, subnormals
    // included, and the product with 2^120 is exact. The code of all ones is NaN.
    const float scale = float_of((127 + 120) << 23);
    u32 low = codes & 0xff, high = codes >> 8;
    first = float_of((low & 0x7f) << 20) * scale;
    second = float_of((high & 0x7f) << 20) * scale;
    first = (low & 0x7f) == 0x7f ? float_of(0x7fffffff) : first;
    second = (high & 0x7f) == 0x7f ? float_of(0x7fffffff) : second;
    first = float_of(bits_of(first) | (low & 0x80) << 24);
    second = float_of(bits_of(second) | (high & 0x80) << 24);
#endif
}

__device__ __forceinline__ float to_f32(e4m3 x) {
    float value, other;
    decode_e4m3x2(x.bits, value, other);
    return value;
}

// Rounding to nearest even. Overflow becomes infinity, in e4m3 the largest number; NaN stays NaN.
template <class T>
struct Encode;

template <>
struct Encode<f32> {
    static __device__ __forceinline__ f32 from(float x) { return x; }
};

template <>
struct Encode<f16> {
    static __device__ __forceinline__ f16 from(float x) {
        f16 result;
        asm("cvt.rn.f16.f32 %0, %1;" : "=h"(result.bits) : "f"(x));
        return result;
    }
};

template <>
struct Encode<bf16> {
    static __device__ __forceinline__ bf16 from(float x) {
        bf16 result;
        asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(result.bits) : "f"(x));
        return result;
    }
};

template <>
struct Encode<e4m3> {
    static __device__ __forceinline__ e4m3 from(float x) {
#if __CUDA_ARCH__ >= 890
        u16 codes;
        asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(codes) : "f"(0.0f), "f"(x));
        return e4m3{u8(codes)};
#else
        // As mantissa_numerics encodes it. Normal numbers are rounded as integers; one unit in the last place of
        // 2^14 is 2^-9, the smallest subnormal, so that adding 2^14 rounds to its multiples.
        const u32 min_normal = (127 - 6) << 23, rebias = (127 - 7) << 3, dropped = 23 - 3;
        const float grid = 16384.0f;
        u32 bits = bits_of(x), magnitude = bits & 0x7fffffff;
        u32 normal = (magnitude + (1u << (dropped - 1)) - 1 + (magnitude >> dropped & 1)) >> dropped;
        u32 subnormal = bits_of(float_of(magnitude) + grid) - bits_of(grid);
        u32 code = magnitude < min_normal ? subnormal : normal - rebias;
        code = is_nan(x) ? 0x7f : minimum(code, 0x7eu);
        return e4m3{u8((bits >> 24 & 0x80) | code)};
#endif
    }
};

template <class T>
__device__ __forceinline__ T from_f32(float x) { return Encode<T>::from(x); }

// Ends of the range of a format of scales.
template <class T>
struct Range;
template <>
struct Range<f32> {
    static __device__ __forceinline__ f32 min_subnormal() { return float_of(1); }
    static __device__ __forceinline__ f32 max_finite() { return float_of(0x7f7fffff); }
};
template <>
struct Range<f16> {
    static __device__ __forceinline__ f16 min_subnormal() { return f16{0x0001}; }
    static __device__ __forceinline__ f16 max_finite() { return f16{0x7bff}; }
};

// --------------------------------------------------------------------------------------------------------- packs

// BYTES that one instruction moves.
template <int BYTES>
struct Raw;
template <>
struct Raw<2> {
    u16 bits;
    __device__ __forceinline__ u32 word(int) const { return bits; }
    __device__ __forceinline__ void set_word(int, u32 value) { bits = u16(value); }
};
template <>
struct Raw<4> {
    u32 bits;
    __device__ __forceinline__ u32 word(int) const { return bits; }
    __device__ __forceinline__ void set_word(int, u32 value) { bits = value; }
};
template <>
struct Raw<8> {
    uint2 bits;
    __device__ __forceinline__ u32 word(int i) const { return i == 0 ? bits.x : bits.y; }
    __device__ __forceinline__ void set_word(int i, u32 value) { (i == 0 ? bits.x : bits.y) = value; }
};
template <>
struct Raw<16> {
    uint4 bits;
    __device__ __forceinline__ u32 word(int i) const {
        return i == 0 ? bits.x : i == 1 ? bits.y : i == 2 ? bits.z : bits.w;
    }
    __device__ __forceinline__ void set_word(int i, u32 value) {
        (i == 0 ? bits.x : i == 1 ? bits.y : i == 2 ? bits.z : bits.w) = value;
    }
};

// COUNT neighbouring values, aligned to their size of 2, 4, 8 or 16 bytes, moved by one instruction.
template <class T, int COUNT>
struct Few {
    static constexpr int VALUES = COUNT;
    Raw<COUNT * int(sizeof(T))> raw;
};

// Sixteen bytes.
template <class T>
using Pack = Few<T, 16 / int(sizeof(T))>;

// The values that share one 32-bit word, or what there is of it.
__device__ __forceinline__ void decode_word(u32 word, f32, float* to) { to[0] = float_of(word); }
__device__ __forceinline__ void decode_word(u32 word, f16, float* to) {
    to[0] = to_f32(f16{u16(word)});
    to[1] = to_f32(f16{u16(word >> 16)});
}
__device__ __forceinline__ void decode_word(u32 word, bf16, float* to) {
    to[0] = float_of(word << 16);
    to[1] = float_of(word & 0xffff0000);
}

__device__ __forceinline__ u32 encode_word(const float* from, f32) { return bits_of(from[0]); }
__device__ __forceinline__ u32 encode_word(const float* from, f16) {
    u32 word;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(from[1]), "f"(from[0]));
    return word;
}
__device__ __forceinline__ u32 encode_word(const float* from, bf16) {
    u32 word;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(from[1]), "f"(from[0]));
    return word;
}

template <class T, int COUNT>
__device__ __forceinline__ void decode(const Few<T, COUNT>& from, float (&to)[COUNT]) {
    constexpr int EACH = 4 / sizeof(T);
    static_assert(COUNT % EACH == 0, "whole words");
#pragma unroll
    for (int i = 0; i < COUNT / EACH; ++i) decode_word(from.raw.word(i), T{}, to + i * EACH);
}

template <int COUNT>
__device__ __forceinline__ void decode(const Few<e4m3, COUNT>& from, float (&to)[COUNT]) {
    static_assert(COUNT % 2 == 0, "codes are decoded in pairs");
#pragma unroll
    for (int i = 0; i < COUNT; i += 2) {
        decode_e4m3x2(u16(from.raw.word(i / 4) >> i % 4 * 8), to[i], to[i + 1]);
    }
}

template <class T, int COUNT>
__device__ __forceinline__ Few<T, COUNT> encode(const float (&from)[COUNT]) {
    constexpr int EACH = 4 / sizeof(T);
    static_assert(COUNT % EACH == 0, "whole words");
    Few<T, COUNT> to;
#pragma unroll
    for (int i = 0; i < COUNT / EACH; ++i) to.raw.set_word(i, encode_word(from + i * EACH, T{}));
    return to;
}

// `address` is aligned to the size of what is moved.
template <class T, int COUNT>
__device__ __forceinline__ Few<T, COUNT> load_few(const T* address) {
    Few<T, COUNT> few;
    few.raw.bits = *reinterpret_cast<const decltype(few.raw.bits)*>(address);
    return few;
}
template <class T>
__device__ __forceinline__ Pack<T> load_pack(const T* address) {
    return load_few<T, Pack<T>::VALUES>(address);
}
template <class T, int COUNT>
__device__ __forceinline__ void store_few(T* address, const Few<T, COUNT>& few) {
    *reinterpret_cast<decltype(Few<T, COUNT>::raw.bits)*>(address) = few.raw.bits;
}

// The first `count` of `COUNT` neighbouring values at an aligned address, zeros in place of the others. Rows are
// padded to 16 bytes, so that all of them may be read.
template <class T, int COUNT>
__device__ __forceinline__ void load_first(const T* address, int count, float (&to)[COUNT]) {
    decode(load_few<T, COUNT>(address), to);
#pragma unroll
    for (int i = 0; i < COUNT; ++i) to[i] = i < count ? to[i] : 0.0f;
}

// Rounds and stores the first `count` of `COUNT` values.
template <class T, int COUNT>
__device__ __forceinline__ void store_first(T* address, int count, const float (&from)[COUNT]) {
    if (count >= COUNT) {
        store_few(address, encode<T>(from));
        return;
    }
#pragma unroll
    for (int i = 0; i < COUNT; ++i) {
        if (i < count) address[i] = from_f32<T>(from[i]);
    }
}

// ------------------------------------------------------------------------------------------ asynchronous copies

__device__ __forceinline__ u32 shared_address(const void* pointer) {
    return static_cast<u32>(__cvta_generic_to_shared(pointer));
}

// Starts copying 16 bytes from global to shared memory, past the first-level cache.
__device__ __forceinline__ void copy_async_16(void* shared, const void* global) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(shared)), "l"(global) : "memory");
}
__device__ __forceinline__ void copy_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until at most PENDING of the latest groups are under way.
template <int PENDING>
__device__ __forceinline__ void copy_async_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}

// ---------------------------------------------------------------------------------------------------- reductions

[[maybe_unused]] constexpr u32 FULL_WARP = 0xffffffff;

// Sum over neighbouring groups of WIDTH lanes: lanes i and i + WIDTH / 2, then i + WIDTH / 4, and so on. Every lane
// gets the same bits.
template <int WIDTH = 32>
__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
    for (int offset = WIDTH / 2; offset > 0; offset /= 2) x = x + __shfl_xor_sync(FULL_WARP, x, offset);
    return x;
}

template <int WIDTH = 32>
__device__ __forceinline__ float warp_max(float x) {
#pragma unroll
    for (int offset = WIDTH / 2; offset > 0; offset /= 2) x = larger(x, __shfl_xor_sync(FULL_WARP, x, offset));
    return x;
}

// Sum over the THREADS of a block (a power of two): thread i adds thread i + THREADS / 2, then i + THREADS / 4, and
// so on. Every thread gets the same bits. `shared` holds THREADS floats; no thread may use them before the next
// barrier.
template <int THREADS>
__device__ __forceinline__ float block_sum(float x, float* shared) {
    static_assert(THREADS >= 32 && (THREADS & (THREADS - 1)) == 0, "a power of two");
    constexpr int WARPS = THREADS / 32;
    if constexpr (WARPS > 1) {
        shared[threadIdx.x] = x;
        __syncthreads();
        float part[WARPS];
#pragma unroll
        for (int i = 0; i < WARPS; ++i) part[i] = shared[i * 32 + threadIdx.x % 32];
#pragma unroll
        for (int half = WARPS / 2; half > 0; half /= 2) {
#pragma unroll
            for (int i = 0; i < half; ++i) part[i] = part[i] + part[i + half];
        }
        x = part[0];
    }
    return warp_sum(x);
}

// Largest number of a block; `shared` as for block_sum.
template <int THREADS>
__device__ __forceinline__ float block_max(float x, float* shared) {
    constexpr int WARPS = THREADS / 32;
    x = warp_max(x);
    if constexpr (WARPS > 1) {
        if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = x;
        __syncthreads();
        x = shared[0];
#pragma unroll
        for (int i = 1; i < WARPS; ++i) x = larger(x, shared[i]);
    }
    return x;
}

// --------------------------------------------------------------------------------------------------- exponentials

// e^r 2^n for x = n ln 2 + r, |r| <= ln 2 / 2 (Cody and Waite): the polynomial, and n in the low bits of `shifted`.
__device__ __forceinline__ float exp_reduced(float x, u32& shifted) {
    // 1.5 * 2^23: adding it leaves an integer in the low bits, rounded to nearest even.
    const float magic = 12582912.0f;
    float sum = mul_add(x, 1.44269504088896340736f, magic);
    shifted = bits_of(sum);
    float n = sum - magic;
    // ln 2 in two parts: the first has trailing zeros, so that its product with n is exact.
    float r = mul_add(n, -0.693359375f, x);
    r = mul_add(n, 2.12194440e-4f, r);
    // Taylor coefficients: at |r| <= 0.347 the first one left out, r^7 / 5040 / 8, is below 2^-23.
    float value = 1.0f / 5040.0f;
    value = mul_add(value, r, 1.0f / 720.0f);
    value = mul_add(value, r, 1.0f / 120.0f);
    value = mul_add(value, r, 1.0f / 24.0f);
    value = mul_add(value, r, 1.0f / 6.0f);
    value = mul_add(value, r, 0.5f);
    value = mul_add(value, r, 1.0f);
    return mul_add(value, r, 1.0f);
}

// e^x within 2 units in the last place; 0 at minus infinity, infinity at overflow, NaN at NaN.
__device__ __forceinline__ float exponential(float x) {
    // Beyond the bounds the result is zero or infinity all the same. NaN fails both comparisons and passes.
    x = x < -104.0f ? -104.0f : x;
    x = x > 89.0f ? 89.0f : x;
    u32 shifted;
    float value = exp_reduced(x, shifted);
    // In two factors, because 2^n alone may be beyond the range; the first product is exact.
    i32 n = i32(shifted - 0x4b400000);
    i32 half = n >> 1;
    return value * float_of(u32(half + 127) << 23) * float_of(u32(n - half + 127) << 23);
}

// 2^x with a relative error of 2 times 2^-23; results below the normal range are zero, 0 gives 1.
__device__ __forceinline__ float power_of_two(float x) {
    float result;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
    return result;
}

// e^x for x <= 0 with a relative error of 2 times 2^-23; 0 where the result would be subnormal; NaN at NaN. A third of
// the instructions of exponential(): attention takes one for each score. Of all arguments the worst has 1.7 times 2^-23
// on an H200.
__device__ __forceinline__ float exponential_below_one(float x) {
    // Below -88 the result is zero all the same, and minus infinity would be subtracted from itself.
    asm("max.NaN.f32 %0, %0, %1;" : "+f"(x) : "f"(-88.0f));
    // e^x = 2^t e^(x - t ln 2): what the rounding of t took away, in two parts of ln 2, is so small that 1 + c is its
    // exponential.
    float t = x * 1.44269504088896340736f;
    float c = mul_add(t, -0.693147182464599609375f, x);
    c = mul_add(t, 1.9046542e-9f, c);
    float value = power_of_two(t);
    return mul_add(value, c, value);
}

// 1 / x with a relative error of 2^-23; results below the normal range are zero.
__device__ __forceinline__ float near_reciprocal(float x) {
    float result;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
    return result;
}

// x / (1 + e^-x), to be rounded to T; NaN at minus infinity, as the quotient says; zero where e^x would be subnormal. Large
// products take it for each output, and each of its instructions keeps the tensor cores waiting: hence neither exponential()
// nor divide().
template <class T>
__device__ __forceinline__ float silu(float x) {
    if constexpr (sizeof(T) == 2) {
        // e^-x = 2^t with a t that is rounded once: a relative error of (4 + |x|) times 2^-23 at most, and of 4 times 2^-23 where
        // x is positive. Where 2^t overflows, its reciprocal is zero.
        return x * near_reciprocal(1.0f + power_of_two(x * -1.44269504088896340736f));
    }
    // A relative error of 4 times 2^-23, without overflow of the exponential: for negative x as x e^x / (1 + e^x).
    float decay = exponential_below_one(-fabsf(x));
    float numerator = x < 0.0f ? x * decay : x;
    return numerator * near_reciprocal(1.0f + decay);
}

// ------------------------------------------------------------------------------------------------ dependent launches

// Every kernel may be launched before the kernels in front of it in the stream have ended (programmatic dependent
// launch). It calls launch_dependents() when it starts, and wait_for_inputs() before it first reads what an earlier
// kernel wrote and before it first writes; until then it may read weights, which nothing writes, and the batch, which is
// there before a run starts. Some thread of every launch has to wait, whatever there is to do: a kernel that ended
// without would release the next one before those in front of it have ended. Where the device or the launch knows no
// such thing, both hold from the start. The compiler moves plain loads behind the wait: what is to
// be on its way before takes volatile ones.

// The next kernel may start.
__device__ __forceinline__ void launch_dependents() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// Returns when all earlier kernels have ended and what they wrote can be seen.
__device__ __forceinline__ void wait_for_inputs() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// --------------------------------------------------------------------------------------------------------- batches

// One sequence of a batch.
struct Sequence {
    u32 first_row;
    u32 end_row;
    u32 rope_set;
    // Index of its first page in BatchView::block_tables.
    u32 block_table;
};

// A batch in device memory; uploaded before the first kernel of a run.
struct BatchView {
    const u32* tokens;
    const u32* positions;
    // The sequence of each row.
    const u32* row_sequence;
    const Sequence* sequences;
    const u32* block_tables;
    // Rows whose logits are wanted.
    const u32* outputs;
};
