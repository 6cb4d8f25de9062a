// Activations of the token kernel's products: from the exchange, through RMSNorm where there is one, into shared memory.

// Columns of a segment of product_mma.cuh.
constexpr u32 SEGMENT = 256;
// From segment to segment of the activations in shared memory: two of them are read at once, from different banks.
constexpr u32 INPUT_PITCH = SEGMENT * 2 + 64;
// Threads that take activations, as many as norm.cu has for a row, and what each takes at a time. The others finish outputs,
// so that the next phase's activations are waited for in the meantime.
constexpr u32 READERS = 256, NORM_EACH = 4, NORM_SWEEP = READERS * NORM_EACH;

// What a warp works with in shared memory.
struct Work {
    u8* input;
    float* sums;
    float* scratch;
};

// Where four neighbouring activations go, two words of each sixteen of a block of two steps: those that a lane multiplies in
// both lie together, words i, i + 4, i + 8 and i + 12.
__device__ __forceinline__ u32 input_place(const Work& work, u32 column) {
    const u32 word = column % 32 / 2, block = column / SEGMENT * INPUT_PITCH + column % SEGMENT / 32 * 64;
    return kept(shared_address(work.input) + block + word % 4 * 16 + word / 4 * 4);
}
// What a thread stores, in sweeps of all of them.
__device__ __forceinline__ void store_input(u32 place, u32 sweep, uint2 four) {
    const u32 to = place + sweep * (NORM_SWEEP / SEGMENT * INPUT_PITCH);
    store_shared(to, four.x);
    store_shared(to + 16, four.y);
}

// Zeros from the last column to the end of its fill.
__device__ __forceinline__ void pad_input(u32 columns, const Work& work) {
    const u32 at = columns + threadIdx.x * 4;
    if (at < round_up(columns, 2 * SEGMENT)) store_input(input_place(work, at), 0, make_uint2(0, 0));
}

// What this thread takes of activations as they come.
using AskedInput = Asked<INPUT_EACH, READERS * 2>;
__device__ __forceinline__ AskedInput ask_input(const u64* words, u32 columns) {
    const bool takes = threadIdx.x < minimum(READERS, columns / 4);
    return AskedInput(words + threadIdx.x * 2, takes ? div_ceil(columns / 4 - threadIdx.x, READERS) : 0);
}

__device__ __forceinline__ void take_input(AskedInput& asked, u32 columns, u32 epoch, const Work& work) {
    const u32 to = input_place(work, threadIdx.x * 4);
    pad_input(columns, work);
    asked.settle(epoch);
#pragma unroll
    for (u32 i = 0; i < INPUT_EACH; ++i) {
        if (i < asked.count) store_input(to, i, asked.data(i));
    }
    consumers_sync();
}

// 1 / x, rounded once.
__device__ __forceinline__ float reciprocal(float x) {
    float result;
    asm("rcp.rn.f32 %0, %1;" : "=f"(result) : "f"(x));
    return result;
}

// 1 / sqrt(sum / columns + eps), every operation rounded once. Far from the ends of f32's range these are the very steps that
// the compiler takes for them, without a branch for each.
struct InverseRoot {
    float columns;
    float by_columns;
    float eps;
    // Bits from those of 2^-60 on that sums have for which that holds.
    u32 plain;

    __device__ __forceinline__ InverseRoot(u32 columns, float eps)
        : columns(float(columns)), by_columns(reciprocal(float(columns))), eps(eps),
          plain(eps >= 0.0f && eps <= 1.0f ? 120 << 23 : 0) {}

    __device__ __forceinline__ float of(float sum) const {
        if (bits_of(sum) - (67 << 23) >= plain) return reciprocal(square_root(divide(sum, columns) + eps));
        const float quotient = sum * by_columns;
        const float x = mul_add(by_columns, mul_add(-columns, quotient, sum), quotient) + eps;
        float inverse, result;
        asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(inverse) : "f"(x));
        const float near = x * inverse, root = mul_add(mul_add(-near, near, x), inverse * 0.5f, near);
        asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(root));
        return mul_add(result, -mul_add(result, root, -1.0f), result);
    }
};

// A thread's weights of the norm.
using NormWeights = float[NORM_SWEEPS][NORM_EACH];

__device__ __forceinline__ u32 norm_sweeps(u32 columns) {
    const u32 first = threadIdx.x * NORM_EACH;
    return threadIdx.x < READERS && first < columns ? div_ceil(columns - first, NORM_SWEEP) : 0;
}

__device__ __forceinline__ void load_norm(const Phase& phase, NormWeights& weight) {
    const u32 sweeps = norm_sweeps(phase.columns);
#pragma unroll
    for (u32 i = 0; i < NORM_SWEEPS; ++i) {
        if (i < sweeps) decode(load_pack(phase.norm + threadIdx.x * NORM_EACH + i * NORM_SWEEP), weight[i]);
    }
}

// What this thread takes of activations that a norm follows.
using AskedNormed = Asked<NORM_SWEEPS, spread(NORM_SWEEP / 2)>;
__device__ __forceinline__ AskedNormed ask_normed(const u64* words, u32 columns) {
    return AskedNormed(words + spread(threadIdx.x * NORM_EACH / 2), norm_sweeps(columns));
}

// Activations through RMSNorm, each number as norm.cu computes it.
__device__ __forceinline__ void take_normed(
    AskedNormed& asked, const NormWeights& weight, u32 columns, f32 eps, u32 epoch, const Work& work
) {
    float x[NORM_SWEEPS][NORM_EACH] = {}, sum = 0.0f;
    const u32 to = input_place(work, threadIdx.x * NORM_EACH);
    const u32 sweeps = asked.count, lane = threadIdx.x % 32;
    const InverseRoot inverse_root(columns, eps);
    pad_input(columns, work);
    if (threadIdx.x < READERS) {
        asked.settle(epoch);
#pragma unroll
        for (u32 i = 0; i < NORM_SWEEPS; ++i) {
            if (i >= sweeps) continue;
            decode_word(asked.data(i).x, A{}, x[i]);
            decode_word(asked.data(i).y, A{}, x[i] + 2);
#pragma unroll
            for (u32 j = 0; j < NORM_EACH; ++j) sum = mul_add(x[i][j], x[i][j], sum);
        }
        // Those of lanes 16 apart, which are added first of a warp's, lie together.
        work.scratch[threadIdx.x - lane + lane % 16 * 2 + lane / 16] = sum;
        // The other warps may still be busy.
        asm volatile("bar.sync 3, %0;" ::"n"(READERS) : "memory");
        float2 part[READERS / 32];
#pragma unroll
        for (u32 i = 0; i < READERS / 32; ++i) part[i] = reinterpret_cast<const float2*>(work.scratch)[i * 16 + lane % 16];
#pragma unroll
        for (u32 half = READERS / 64; half > 0; half /= 2) {
#pragma unroll
            for (u32 i = 0; i < half; ++i) part[i] = float2{part[i].x + part[i + half].x, part[i].y + part[i + half].y};
        }
        const float inverse = inverse_root.of(warp_sum<16>(part[0].x + part[0].y));
#pragma unroll
        for (u32 i = 0; i < NORM_SWEEPS; ++i) {
            if (i >= sweeps) continue;
            float scaled[NORM_EACH];
#pragma unroll
            for (u32 j = 0; j < NORM_EACH; ++j) scaled[j] = (x[i][j] * inverse) * weight[i][j];
            store_input(to, i, encode<A>(scaled).raw.bits);
        }
    }
    consumers_sync();
}
