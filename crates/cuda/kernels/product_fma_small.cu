// Products on the FMA units for few activations: f32, and operands of two formats.
//
// The order of every sum, whichever kernel computes it: 32 chains of fused multiply-adds on exactly decoded operands;
// chain c takes, ascending, the groups of GROUP neighbouring k whose number modulo 32 is c; the chains are added
// ascending from zero. Beyond the last column both operands are zero. GROUP is what 16 bytes of a weight row hold.
//
// A warp computes ROWS rows of the weights by up to TOKENS activations; lane c has the chains c. Weights go from memory
// straight to registers, DEPTH groups ahead.
//
// Aliases besides those of product.cuh: ROWS, TOKENS, WARPS.

constexpr int GROUP = 16 / sizeof(W);
constexpr int CHAINS = 32;
// Columns from one group of a chain to the next.
constexpr int ROUND = CHAINS * GROUP;
constexpr int DEPTH = ROWS == 1 ? 8 : ROWS == 2 ? 4 : 2;
constexpr int PARTS = EPILOGUE == SWIGLU ? 2 : 1;
constexpr int FEATURES = ROWS / PARTS;
constexpr int CELLS = FEATURES * TOKENS;

static_assert(ROWS % PARTS == 0 && CELLS <= 32, "one lane finishes one output");

// The groups of this lane that are `ahead` rounds of all lanes behind `first`. Sums of `first` and constants are formed
// in 64 bits, so that the constants become part of the instructions.
__device__ __forceinline__ void load_weights(const W* const (&rows)[ROWS], u32 first, int ahead, u32 columns,
                                             uint4 (&raw)[ROWS]) {
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
        raw[r] = make_uint4(0, 0, 0, 0);
        if (first + ahead * ROUND < columns) {
            // Relaxed, because the compiler moves weaker loads behind the wait that they are to overlap with.
            asm volatile("ld.relaxed.gpu.global.L1::no_allocate.L2::128B.v4.u32 {%0, %1, %2, %3}, [%4];"
                         : "=r"(raw[r].x), "=r"(raw[r].y), "=r"(raw[r].z), "=r"(raw[r].w)
                         : "l"(rows[r] + u64(first) + ahead * ROUND));
        }
    }
}

using Chains = float[ROWS][TOKENS];

__device__ __forceinline__ void multiply(const uint4 (&raw)[ROWS], const A* const (&input)[TOKENS], u32 first,
                                         int ahead, u32 columns, Chains& sums) {
    float w[ROWS][GROUP];
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
        Pack<W> pack;
        memcpy(&pack, &raw[r], sizeof(pack));
        decode(pack, w[r]);
    }
#pragma unroll
    for (int n = 0; n < TOKENS; ++n) {
        float x[GROUP];
        load_input(input[n], first, ahead * ROUND, columns, x);
#pragma unroll
        for (int i = 0; i < GROUP; ++i) {
#pragma unroll
            for (int r = 0; r < ROWS; ++r) sums[r][n] = mul_add(w[r][i], x[i], sums[r][n]);
        }
    }
}

// One warp's outputs: FEATURES from `feature` on of the activations from `token` on.
__device__ __forceinline__ void small_rows(const ProductArgs& args, u32 feature, u32 token,
                                           float (&shared)[ROWS * TOKENS][CHAINS + 1]) {
    const u32 lane = threadIdx.x % 32;
    const W* rows[ROWS];
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
        // The parts of an output are eight rows apart in a tile of sixteen.
        rows[r] = weight_row(args, feature + r / PARTS, r % PARTS * 8);
    }
    uint4 raw[DEPTH][ROWS];
#pragma unroll
    for (int i = 0; i < DEPTH; ++i) load_weights(rows, lane * GROUP, i, args.columns, raw[i]);
    wait_for_inputs();
    const A* input[TOKENS];
#pragma unroll
    for (int n = 0; n < TOKENS; ++n) input[n] = input_row(args, token + n);
    Chains sums = {};
    for (u32 first = lane * GROUP; first - lane * GROUP < args.columns; first += DEPTH * ROUND) {
#pragma unroll
        for (int i = 0; i < DEPTH; ++i) {
            multiply(raw[i], input, first, i, args.columns, sums);
            load_weights(rows, first, i + DEPTH, args.columns, raw[i]);
        }
    }
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
#pragma unroll
        for (int n = 0; n < TOKENS; ++n) shared[r * TOKENS + n][lane] = sums[r][n];
    }
    __syncwarp();
    const u32 output = lane % FEATURES, column = lane / FEATURES;
    if (lane >= CELLS || feature + output >= args.features || token + column >= args.rows) return;
    float total[PARTS] = {};
#pragma unroll
    for (int c = 0; c < CHAINS; ++c) {
#pragma unroll
        for (int part = 0; part < PARTS; ++part) {
            total[part] = total[part] + shared[(output * PARTS + part) * TOKENS + column][c];
        }
    }
    finish(args, token + column, feature + output, total[0], total[PARTS - 1]);
}

extern "C" __global__ void __launch_bounds__(WARPS * 32, 2) product_small(const ProductArgs args) {
    __shared__ float shared[WARPS][ROWS * TOKENS][CHAINS + 1];
    const u32 warp = threadIdx.x / 32;
    launch_dependents();
    small_rows(args, (blockIdx.x * WARPS + warp) * FEATURES, blockIdx.y * TOKENS, shared[warp]);
}
