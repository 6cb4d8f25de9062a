// RMSNorm, alone or after a residual addition: one block a row.
//
// Thread t takes the elements whose index divided by 4 is t modulo 256, squares them in one ascending chain of fused
// multiply-adds, and the chains are summed as the tree of block_sum: 256 lanes in groups of 4, whatever the width.
// Everything is f32 until the one rounding of each stored value; the sum stored in the residual is rounded, the sum that
// is normalised is not. Aliases: A activations, RESIDUAL 1 with the addition.

constexpr int THREADS = 256;
constexpr int EACH = 4;
constexpr u32 SWEEP = THREADS * EACH;
// Sweeps whose elements stay in registers, with their weights, which are on their way while squares are summed; the
// elements of further ones are read again.
constexpr u32 KEPT = 4;

struct Args {
    // [rows][input_stride].
    const A* input;
    // [rows][residual_stride]: read, and replaced by the sum.
    A* residual;
    // [width].
    const f32* weight;
    // [rows][out_stride].
    A* out;
    u32 width;
    u32 input_stride;
    u32 residual_stride;
    u32 out_stride;
    float eps;
    u32 rows;
};

__device__ __forceinline__ void load(const A* input, const A* residual, int count, float (&x)[EACH]) {
    load_first(input, count, x);
    if (RESIDUAL) {
        float r[EACH];
        load_first(residual, count, r);
#pragma unroll
        for (int i = 0; i < EACH; ++i) x[i] = x[i] + r[i];
    }
}

__device__ __forceinline__ float add_squares(float sum, const float (&x)[EACH]) {
#pragma unroll
    for (int i = 0; i < EACH; ++i) sum = mul_add(x[i], x[i], sum);
    return sum;
}

extern "C" __global__ __launch_bounds__(THREADS) void rms_norm(const Args args) {
    launch_dependents();
    wait_for_inputs();
    __shared__ float shared[THREADS];
    const A* input = args.input + u64(blockIdx.x) * args.input_stride;
    A* residual = RESIDUAL ? args.residual + u64(blockIdx.x) * args.residual_stride : nullptr;
    A* out = args.out + u64(blockIdx.x) * args.out_stride;
    u32 first = threadIdx.x * EACH;
    auto left = [&](u32 at) { return minimum(i32(args.width - at), EACH); };

    float kept[KEPT][EACH], kept_weight[KEPT][EACH], sum = 0.0f;
#pragma unroll
    for (u32 sweep = 0; sweep < KEPT; ++sweep) {
        u32 at = first + sweep * SWEEP;
        if (at < args.width) load_first(args.weight + at, left(at), kept_weight[sweep]);
    }
#pragma unroll
    for (u32 sweep = 0; sweep < KEPT; ++sweep) {
        u32 at = first + sweep * SWEEP;
        if (at < args.width) {
            load(input + at, residual + at, left(at), kept[sweep]);
            sum = add_squares(sum, kept[sweep]);
        }
    }
    for (u32 at = first + KEPT * SWEEP; at < args.width; at += SWEEP) {
        float x[EACH];
        load(input + at, residual + at, left(at), x);
        sum = add_squares(sum, x);
    }
    sum = block_sum<THREADS>(sum, shared);
    float inverse = divide(1.0f, square_root(divide(sum, float(args.width)) + args.eps));

    auto finish = [&](u32 at, const float (&x)[EACH], const float (&weight)[EACH]) {
        float scaled[EACH];
#pragma unroll
        for (int i = 0; i < EACH; ++i) scaled[i] = (x[i] * inverse) * weight[i];
        if (RESIDUAL) store_first(residual + at, left(at), x);
        store_first(out + at, left(at), scaled);
    };
#pragma unroll
    for (u32 sweep = 0; sweep < KEPT; ++sweep) {
        u32 at = first + sweep * SWEEP;
        if (at < args.width) finish(at, kept[sweep], kept_weight[sweep]);
    }
    for (u32 at = first + KEPT * SWEEP; at < args.width; at += SWEEP) {
        float x[EACH], weight[EACH];
        load(input + at, residual + at, left(at), x);
        load_first(args.weight + at, left(at), weight);
        finish(at, x, weight);
    }
}
