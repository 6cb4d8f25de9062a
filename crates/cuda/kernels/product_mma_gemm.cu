// Tensor-core products for many activations: tiles of FEATURE_TILE rows of the weights by TOKEN_TILE activations, whose
// operands come through STAGES rings of shared memory.
//
// Aliases besides those of product.cuh: FEATURE_TILE, TOKEN_TILE, WARP_FEATURES, WARP_TOKENS, STAGES.

// Columns of a stage, a row of which is 128 bytes: eight chunks.
constexpr int DEPTH = 64;
constexpr int CHUNKS = DEPTH / CHUNK;
constexpr int FEATURE_WARPS = FEATURE_TILE / WARP_FEATURES, TOKEN_WARPS = TOKEN_TILE / WARP_TOKENS;
constexpr int THREADS = FEATURE_WARPS * TOKEN_WARPS * 32;
constexpr int MTILES = WARP_FEATURES / 16, NTILES = WARP_TOKENS / 8;
constexpr int PARTS = EPILOGUE == SWIGLU ? 2 : 1;
constexpr int FEATURES = FEATURE_TILE / PARTS;
// Rows of a stage, weights first, and copies of each thread.
constexpr int STAGE_ROWS = FEATURE_TILE + TOKEN_TILE;
constexpr int COPIES = STAGE_ROWS * CHUNKS / THREADS;
constexpr int ROW_STEP = THREADS / CHUNKS;
// A stride at which the fragments' rows and columns fall into different banks.
constexpr int STRIDE = FEATURE_TILE + 4;

static_assert(STAGE_ROWS * CHUNKS % THREADS == 0 && FEATURE_TILE % ROW_STEP == 0, "every thread copies as much");
static_assert(SEGMENT % DEPTH == 0, "segments end with a stage");
static_assert(TOKEN_TILE * STRIDE * 4 <= STAGES * STAGE_ROWS * DEPTH * 2, "sums take the place of the stages");

// Where a chunk of a stage's row lies: in an order that differs between neighbouring rows, so that the same chunk of
// eight of them falls into different banks.
__device__ __forceinline__ u32 place(u32 row, u32 chunk) { return row * CHUNKS + (chunk ^ row % 8); }

// What one thread copies of each stage: one chunk of COPIES rows.
struct Copier {
    const u16* source[COPIES];
    u32 first_row;
    u32 chunk;
    u32 columns;

    __device__ __forceinline__ Copier(const ProductArgs& args, u32 feature, u32 token) {
        first_row = threadIdx.x / CHUNKS;
        chunk = threadIdx.x % CHUNKS;
        columns = args.columns;
#pragma unroll
        for (int i = 0; i < COPIES; ++i) {
            u32 row = first_row + i * ROW_STEP;
            if (i * ROW_STEP < FEATURE_TILE) {
                const W* weights = weight_row(args, feature + row / 16 * (16 / PARTS), row % 16);
                source[i] = reinterpret_cast<const u16*>(weights) + chunk * CHUNK;
            } else {
                const A* input = input_row(args, token + row - FEATURE_TILE);
                source[i] = reinterpret_cast<const u16*>(input) + chunk * CHUNK;
            }
        }
    }

    __device__ __forceinline__ void start(uint4* stage, u32 from) const {
        u32 column = from + chunk * CHUNK;
        u32 bytes = column < columns ? minimum(columns - column, u32(CHUNK)) * 2 : 0;
        u32 to = shared_address(stage);
#pragma unroll
        for (int i = 0; i < COPIES; ++i) {
            // An address that is not read still has to be one of the row.
            const u16* address = source[i] + (bytes == 0 ? 0 : from);
            copy_async_first(to + place(first_row + i * ROW_STEP, chunk) * 16, bytes == 0 ? source[i] - chunk * CHUNK : address, bytes);
        }
    }
};

using Sums = float[MTILES][NTILES][4];

// Adds the products of one stage to `sums`. The addresses are those of this warp's rows.
__device__ __forceinline__ void multiply_stage(u32 weights, u32 input, u32 lane, Sums& sums) {
    static_assert(CHUNKS == 8 && NTILES % 2 == 0, "activations are loaded sixteen at once");
#pragma unroll
    for (int step = 0; step < DEPTH / STEP; ++step) {
        // Sixteen rows by two chunks each: of the weights the halves of rows come first, of the activations the chunks.
        u32 x[NTILES / 2][4];
#pragma unroll
        for (int n = 0; n < NTILES / 2; ++n) {
            u32 row = n * 16 + lane / 16 * 8 + lane % 8;
            load_matrices(x[n], input + place(row, step * 2 + lane / 8 % 2) * 16);
        }
#pragma unroll
        for (int m = 0; m < MTILES; ++m) {
            u32 w[4];
            load_matrices(w, weights + place(m * 16 + lane % 16, step * 2 + lane / 16) * 16);
#pragma unroll
            for (int n = 0; n < NTILES; ++n) {
                mma<W>(sums[m][n], w[0], w[1], w[2], w[3], x[n / 2][n % 2 * 2], x[n / 2][n % 2 * 2 + 1]);
            }
        }
    }
}

__device__ __forceinline__ void end_segment(Sums& sums, Sums& totals) {
#pragma unroll
    for (int m = 0; m < MTILES; ++m) {
#pragma unroll
        for (int n = 0; n < NTILES; ++n) {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                totals[m][n][i] = totals[m][n][i] + sums[m][n][i];
                sums[m][n][i] = 0.0f;
            }
        }
    }
}

// Through shared memory, so that neighbouring threads store neighbouring outputs.
__device__ __forceinline__ void store_tile(const ProductArgs& args, u32 feature, u32 token, float* shared,
                                           const Sums& totals, u32 first_row, u32 first_column) {
    const u32 g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
#pragma unroll
    for (int m = 0; m < MTILES; ++m) {
#pragma unroll
        for (int n = 0; n < NTILES; ++n) {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                u32 row = first_row + m * 16 + g + i / 2 * 8, column = first_column + n * 8 + 2 * t + i % 2;
                shared[column * STRIDE + row] = totals[m][n][i];
            }
        }
    }
    __syncthreads();
    const u32 tokens = minimum(args.rows - token, u32(TOKEN_TILE));
    for (u32 i = threadIdx.x; i < FEATURES * tokens; i += THREADS) {
        const u32 output = i % FEATURES, column = i / FEATURES;
        if (feature + output >= args.features) continue;
        const float* sums = shared + column * STRIDE;
        if constexpr (PARTS == 2) {
            u32 row = output / 8 * 16 + output % 8;
            finish(args, token + column, feature + output, sums[row], sums[row + 8]);
        } else {
            finish(args, token + column, feature + output, sums[output]);
        }
    }
}

extern "C" __global__ void __launch_bounds__(THREADS) product_gemm(const ProductArgs args) {
    extern __shared__ uint4 stages[];
    constexpr int STAGE = STAGE_ROWS * CHUNKS;
    const u32 token = blockIdx.x * TOKEN_TILE, feature = blockIdx.y * FEATURES;
    const u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const u32 first_row = warp % FEATURE_WARPS * WARP_FEATURES, first_column = warp / FEATURE_WARPS * WARP_TOKENS;
    launch_dependents();
    wait_for_inputs();
    const Copier copier(args, feature, token);
    const u32 steps = div_ceil(args.columns, DEPTH);
#pragma unroll
    for (int i = 0; i < STAGES - 1; ++i) {
        copier.start(stages + i * STAGE, i * DEPTH);
        copy_async_commit();
    }
    Sums sums = {}, totals = {};
    u32 slot = 0, free_slot = STAGES - 1;
    for (u32 step = 0; step < steps; ++step) {
        // This stage has arrived, and all have read the stage that the next copy replaces.
        copy_async_wait<STAGES - 2>();
        __syncthreads();
        copier.start(stages + free_slot * STAGE, (step + STAGES - 1) * DEPTH);
        copy_async_commit();
        const u32 stage = shared_address(stages + slot * STAGE);
        multiply_stage(stage + first_row * CHUNKS * 16, stage + (FEATURE_TILE + first_column) * CHUNKS * 16, lane, sums);
        if (step % (SEGMENT / DEPTH) == SEGMENT / DEPTH - 1) end_segment(sums, totals);
        slot = slot + 1 == STAGES ? 0 : slot + 1;
        free_slot = free_slot + 1 == STAGES ? 0 : free_slot + 1;
    }
    // What is left of a segment; zeros where one has just ended.
    end_segment(sums, totals);
    copy_async_wait<0>();
    __syncthreads();
    store_tile(args, feature, token, reinterpret_cast<float*>(stages), totals, first_row, first_column);
}
