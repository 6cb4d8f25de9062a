// Softmax along rows that fit the registers of GROUP threads: each row is read once, 16 bytes at a time.
//
// Aliases besides A: GROUP threads share a row (32, 64 or 128), PACKS packs of 16 bytes a thread. Thread t holds the
// packs t, t + GROUP and so on; a pack is one chain's four numbers, or those of two neighbouring chains.

constexpr int VALUES = Pack<A>::VALUES;
// Chains of a pack, and how many packs a thread takes until it meets the same chains again.
constexpr int PAIR = VALUES / 4;
constexpr int CHAINS = 256 / (PAIR * GROUP);
constexpr int THREADS = GROUP == 32 ? 128 : GROUP;
constexpr int ROWS = THREADS / GROUP;

static_assert(CHAINS >= 1 && CHAINS * PAIR * GROUP == 256, "256 chains");

__device__ __forceinline__ float group_sum(float x, float* shared) {
    if constexpr (GROUP == 32) return warp_sum(x);
    else return block_sum<GROUP>(x, shared);
}
__device__ __forceinline__ float group_max(float x, float* shared) {
    if constexpr (GROUP == 32) return warp_max(x);
    else return block_max<GROUP>(x, shared);
}

// The sum of all exponentials of a row, of which this thread holds `x`.
__device__ __forceinline__ float row_sum(const float (&x)[PACKS][VALUES], float (&shared)[PAIR][THREADS]) {
    float chains[CHAINS][PAIR] = {};
#pragma unroll
    for (int pack = 0; pack < PACKS; ++pack) {
#pragma unroll
        for (int i = 0; i < VALUES; ++i) {
            float& chain = chains[pack % CHAINS][i / 4];
            chain = chain + x[pack][i];
        }
    }
#pragma unroll
    for (int half = CHAINS / 2; half > 0; half /= 2) {
#pragma unroll
        for (int i = 0; i < half; ++i) {
#pragma unroll
            for (int j = 0; j < PAIR; ++j) chains[i][j] = chains[i][j] + chains[i + half][j];
        }
    }
    float sum = group_sum(chains[0][0], shared[0]);
    if constexpr (PAIR == 2) sum = sum + group_sum(chains[0][1], shared[1]);
    return sum;
}

extern "C" __global__ __launch_bounds__(THREADS) void softmax_vec(const Args args) {
    launch_dependents();
    __shared__ float for_largest[THREADS];
    __shared__ float for_sum[PAIR][THREADS];
    const u32 row = blockIdx.x * ROWS + threadIdx.x / GROUP, first = threadIdx.x % GROUP * VALUES;
    // Whole warps: where a row has more than one, a block has one row.
    if (row >= args.rows) return;
    wait_for_inputs();
    const A* input = args.input + u64(row) * args.input_stride + first;
    A* out = args.out + u64(row) * args.out_stride + first;
    // How many values of a pack belong to the row; none or less of those beyond its end.
    auto left = [&](int pack) { return i32(args.width - first) - pack * (GROUP * VALUES); };

    float x[PACKS][VALUES] = {};
#pragma unroll
    for (int pack = 0; pack < PACKS; ++pack) {
        if (left(pack) > 0) load_first(input + pack * (GROUP * VALUES), left(pack), x[pack]);
    }
    // A NaN loses here and appears in the sum.
    float largest = -infinity();
#pragma unroll
    for (int pack = 0; pack < PACKS; ++pack) {
#pragma unroll
        for (int i = 0; i < VALUES; ++i) {
            x[pack][i] = x[pack][i] * args.scale;
            if (i < left(pack)) largest = larger(largest, x[pack][i]);
        }
    }
    largest = group_max(largest, for_largest);
#pragma unroll
    for (int pack = 0; pack < PACKS; ++pack) {
#pragma unroll
        for (int i = 0; i < VALUES; ++i) {
            x[pack][i] = i < left(pack) ? exponential(x[pack][i] - largest) : 0.0f;
        }
    }
    const float sum = row_sum(x, for_sum);
#pragma unroll
    for (int pack = 0; pack < PACKS; ++pack) {
        if (left(pack) <= 0) continue;
#pragma unroll
        for (int i = 0; i < VALUES; ++i) x[pack][i] = divide(x[pack][i], sum);
        store_first(out + pack * (GROUP * VALUES), left(pack), x[pack]);
    }
}
