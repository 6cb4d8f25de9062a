// Products on the FMA units for many activations: tiles of TILE rows of the weights by TILE activations, in the order of
// product_fma_small.cu: one chain after the other, each added to the totals when it ends.
//
// Aliases besides those of product.cuh: TILE.

constexpr int GROUP = 16 / sizeof(W);
constexpr int CHAINS = 32;
constexpr int THREADS = 256;
// Columns of a stage, all of one chain: at least one group for every thread to move.
constexpr int DEPTH = maximum(16, GROUP * THREADS / TILE);
constexpr int GROUPS = DEPTH / GROUP;
constexpr int SIDE = 16;
// Each thread has VECTORS times four neighbouring rows, and as many activations.
constexpr int VECTORS = TILE / (4 * SIDE);
constexpr int OWN = 4 * VECTORS;
constexpr int PARTS = EPILOGUE == SWIGLU ? 2 : 1;
constexpr int FEATURES = TILE / PARTS;
// Groups that each thread moves of each operand; a warp moves those of 32 neighbouring rows.
constexpr int COPIES = TILE * GROUPS / THREADS;

static_assert(THREADS == SIDE * SIDE && TILE * GROUPS % THREADS == 0, "every thread moves as much");

struct Stage {
    float weights[DEPTH][TILE + 4];
    float input[DEPTH][TILE + 4];
};

// What one thread moves of each stage, between its loads and its stores.
struct Mover {
    const W* weights[COPIES];
    const A* input[COPIES];
    float weight_values[COPIES][GROUP];
    float input_values[COPIES][GROUP];

    __device__ __forceinline__ Mover(const ProductArgs& args, u32 feature, u32 token) {
#pragma unroll
        for (int i = 0; i < COPIES; ++i) {
            u32 row = this->row(i);
            // Gate and up of an output are neighbouring rows of the tile.
            weights[i] = weight_row(args, feature + row / PARTS, row % PARTS * 8);
            input[i] = input_row(args, token + row);
        }
    }

    static __device__ __forceinline__ u32 row(int copy) { return (threadIdx.x + copy * THREADS) % TILE; }
    static __device__ __forceinline__ u32 group(int copy) { return (threadIdx.x + copy * THREADS) / TILE; }

    // Groups `first` to `first + GROUPS` of a chain.
    __device__ __forceinline__ void load(u32 chain, u32 first, u32 columns) {
#pragma unroll
        for (int i = 0; i < COPIES; ++i) {
            const u32 start = ((first + group(i)) * CHAINS + chain) * GROUP;
            Pack<W> pack = {};
            if (start < columns) pack = load_pack(weights[i] + start);
            decode(pack, weight_values[i]);
            load_input(input[i], start, 0, columns, input_values[i]);
        }
    }

    __device__ __forceinline__ void store(Stage& stage) const {
#pragma unroll
        for (int i = 0; i < COPIES; ++i) {
#pragma unroll
            for (int j = 0; j < GROUP; ++j) {
                stage.weights[group(i) * GROUP + j][row(i)] = weight_values[i][j];
                stage.input[group(i) * GROUP + j][row(i)] = input_values[i][j];
            }
        }
    }
};

using Sums = float[OWN][OWN];

// Value i of a thread's rows or activations is number 4 * SIDE * (i / 4) + i % 4 of the tile, from `own` on.
__device__ __forceinline__ void load_own(const float* from, float (&to)[OWN]) {
#pragma unroll
    for (int v = 0; v < VECTORS; ++v) {
        float4 four = *reinterpret_cast<const float4*>(from + v * 4 * SIDE);
        to[4 * v] = four.x;
        to[4 * v + 1] = four.y;
        to[4 * v + 2] = four.z;
        to[4 * v + 3] = four.w;
    }
}

__device__ __forceinline__ void multiply_stage(const Stage& stage, u32 own_row, u32 own_column, Sums& sums) {
#pragma unroll
    for (int k = 0; k < DEPTH; ++k) {
        float w[OWN], x[OWN];
        load_own(&stage.weights[k][own_row], w);
        load_own(&stage.input[k][own_column], x);
#pragma unroll
        for (int r = 0; r < OWN; ++r) {
#pragma unroll
            for (int n = 0; n < OWN; ++n) sums[r][n] = mul_add(w[r], x[n], sums[r][n]);
        }
    }
}

__device__ __forceinline__ void end_chain(Sums& sums, Sums& totals) {
#pragma unroll
    for (int r = 0; r < OWN; ++r) {
#pragma unroll
        for (int n = 0; n < OWN; ++n) {
            totals[r][n] = totals[r][n] + sums[r][n];
            sums[r][n] = 0.0f;
        }
    }
}

__device__ __forceinline__ void store_tile(const ProductArgs& args, u32 feature, u32 token, u32 own_row, u32 own_column,
                                           const Sums& totals) {
#pragma unroll
    for (int n = 0; n < OWN; ++n) {
        const u32 row = token + own_column + n / 4 * 4 * SIDE + n % 4;
        if (row >= args.rows) continue;
#pragma unroll
        for (int r = 0; r < OWN; r += PARTS) {
            const u32 output = feature + (own_row + r / 4 * 4 * SIDE + r % 4) / PARTS;
            if (output < args.features) finish(args, row, output, totals[r][n], totals[r + PARTS - 1][n]);
        }
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, TILE == 64 ? 2 : 1) product_gemm(const ProductArgs args) {
    __shared__ Stage stages[2];
    const u32 token = blockIdx.x * TILE, feature = blockIdx.y * FEATURES;
    // A warp's threads have sixteen neighbouring groups of rows.
    const u32 own_row = threadIdx.x % SIDE * 4, own_column = threadIdx.x / SIDE * 4;
    launch_dependents();
    wait_for_inputs();
    Mover mover(args, feature, token);
    const u32 steps = div_ceil(div_ceil(args.columns, CHAINS * GROUP), GROUPS);
    Sums sums = {}, totals = {};
    mover.load(0, 0, args.columns);
    mover.store(stages[0]);
    __syncthreads();
    u32 slot = 0, next_chain = 0, next_step = 0;
    for (u32 step = 0; step < CHAINS * steps; ++step) {
        ++next_step;
        const bool ends = next_step == steps;
        if (ends) {
            next_step = 0;
            ++next_chain;
        }
        // Beyond the last chain what is loaded belongs to no chain, and is not used.
        mover.load(next_chain % CHAINS, next_step * GROUPS, args.columns);
        multiply_stage(stages[slot], own_row, own_column, sums);
        mover.store(stages[slot ^ 1]);
        if (ends) end_chain(sums, totals);
        __syncthreads();
        slot ^= 1;
    }
    store_tile(args, feature, token, own_row, own_column, totals);
}
