// Softmax along rows of any width: one block a row, which is read three times.

constexpr int THREADS = 256;
constexpr int EACH = 4;
constexpr u32 SWEEP = THREADS * EACH;

extern "C" __global__ __launch_bounds__(THREADS) void softmax_block(const Args args) {
    launch_dependents();
    wait_for_inputs();
    __shared__ float for_largest[THREADS];
    __shared__ float for_sum[THREADS];
    const A* input = args.input + u64(blockIdx.x) * args.input_stride;
    A* out = args.out + u64(blockIdx.x) * args.out_stride;
    u32 first = threadIdx.x * EACH;
    auto left = [&](u32 at) { return minimum(i32(args.width - at), EACH); };

    // A NaN loses here and appears in the sum.
    float largest = -infinity();
    for (u32 at = first; at < args.width; at += SWEEP) {
        float x[EACH];
        load_first(input + at, left(at), x);
#pragma unroll
        for (int i = 0; i < EACH; ++i) {
            if (i < left(at)) largest = larger(largest, x[i] * args.scale);
        }
    }
    largest = block_max<THREADS>(largest, for_largest);
    float sum = 0.0f;
    for (u32 at = first; at < args.width; at += SWEEP) {
        float x[EACH];
        load_first(input + at, left(at), x);
#pragma unroll
        for (int i = 0; i < EACH; ++i) {
            if (i < left(at)) sum = sum + exponential(x[i] * args.scale - largest);
        }
    }
    sum = block_sum<THREADS>(sum, for_sum);
    // The exponentials are formed again, with the same bits, rather than kept.
    for (u32 at = first; at < args.width; at += SWEEP) {
        float x[EACH];
        load_first(input + at, left(at), x);
#pragma unroll
        for (int i = 0; i < EACH; ++i) x[i] = divide(exponential(x[i] * args.scale - largest), sum);
        store_first(out + at, left(at), x);
    }
}
