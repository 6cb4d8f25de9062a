// Tensor-core products for few activations: one or a few columns tiles of eight, bound by reading the weights.
//
// Aliases besides those of product.cuh: MTILES, NTILES, HALF, WARPS (at most), SINGLE (whether there are as many warps as
// segments).

// A block computes one tile: MTILES * 16 rows of the weights (MTILES * 8 if HALF, whose upper halves are empty) by up
// to NTILES * 8 activations. Its warps take the segments in turns; weights go from memory straight to registers,
// DEPTH groups ahead, also over the end of a segment.
// Values that a round of the loops takes: two steps, of each of which a lane has four neighbours of a row.
constexpr int GROUP = 2 * STEP, GROUPS = SEGMENT / GROUP;
constexpr int TILE_ROWS = HALF ? 8 : 16;
constexpr int ROWS = MTILES * TILE_ROWS;
constexpr int TOKENS = NTILES * 8;
constexpr int DEPTH = MTILES == 1 && NTILES <= 2 ? 8 : 4;
// As far ahead as registers allow.
constexpr int INPUT_DEPTH = MTILES == 2 || (RAGGED && NTILES > 1) || (NTILES == 1 && !HALF && !SINGLE) ? 2 : 4;
// Whether the rings are filled again, and a chunk beyond every row's end.
constexpr bool GOES_ON = !SINGLE || DEPTH < GROUPS;
constexpr u32 NOWHERE = 1 << 27;
// A stride at which the rows of a fragment's four columns fall into different banks.
constexpr int STRIDE = ROWS + 4;
// Rows of a tile that make one output, and outputs of a tile.
constexpr int PARTS = EPILOGUE == SWIGLU ? 2 : 1;
constexpr int FEATURES = ROWS / PARTS;

static_assert(GROUPS % DEPTH == 0 && DEPTH % INPUT_DEPTH == 0, "rings start anew with each segment");
static_assert(!HALF || (EPILOGUE != SWIGLU && MTILES == 1), "half tiles are for few outputs");

// The lane's values of a group whose first is at `address`, of which those of the second step begin STEP further.
__device__ __forceinline__ uint4 load_weights(const W* address, u32 start, u32 columns) {
    uint4 raw = make_uint4(0, 0, 0, 0);
    // Relaxed, because the compiler moves weaker loads behind the wait that they are to overlap with.
    auto load = [](const W* from, u32& low, u32& high) {
        asm volatile("ld.relaxed.gpu.global.L1::no_allocate.L2::128B.v2.u32 {%0, %1}, [%2];"
                     : "=r"(low), "=r"(high)
                     : "l"(from));
    };
    if (start < columns) load(address, raw.x, raw.y);
    if (start + STEP < columns) load(address + STEP, raw.z, raw.w);
    return raw;
}

__device__ __forceinline__ uint4 load_activations(const A* address, u32 start, u32 columns) {
    uint4 raw = make_uint4(0, 0, 0, 0);
    if (start < columns) {
        uint2 half = *reinterpret_cast<const uint2*>(address);
        raw.x = half.x, raw.y = half.y;
    }
    if (start + STEP < columns) {
        uint2 half = *reinterpret_cast<const uint2*>(address + STEP);
        raw.z = half.x, raw.w = half.y;
    }
    return raw;
}

// Keeps the values before column `columns` of a lane's values from column `start` on.
__device__ __forceinline__ uint4 before_end(uint4 raw, u32 start, u32 columns) {
    auto keep = [&](u32 pair, u32 index) {
        return columns >= index + 2 ? pair : columns == index + 1 ? pair & 0xffff : 0;
    };
    return make_uint4(keep(raw.x, start), keep(raw.y, start + 2), keep(raw.z, start + STEP),
                      keep(raw.w, start + STEP + 2));
}

// What one lane reads: its chunks of the tile's rows, and of its columns' activations.
struct SmallLane {
    const W* low[MTILES];
    const W* high[MTILES];
    const A* input[NTILES];
    u32 tokens_there;
    u32 columns;

    // What is `ahead` groups behind column `first`. Sums of `first` and constants are formed in 64 bits, so that the
    // constants become part of the instructions.
    __device__ __forceinline__ void weights(u32 first, int ahead, uint4 (&low_raw)[MTILES],
                                            uint4 (&high_raw)[MTILES]) const {
        const u32 start = first + ahead * GROUP;
#pragma unroll
        for (int m = 0; m < MTILES; ++m) {
            low_raw[m] = load_weights(low[m] + u64(first) + ahead * GROUP, start, columns);
            high_raw[m] = load_weights(high[m] + u64(first) + ahead * GROUP, start, HALF ? 0 : columns);
        }
    }

    __device__ __forceinline__ void activations(u32 first, int ahead, uint4 (&raw)[NTILES]) const {
        const u32 start = first + ahead * GROUP;
#pragma unroll
        for (int n = 0; n < NTILES; ++n) {
            raw[n] = load_activations(input[n] + u64(first) + ahead * GROUP, start,
                                      tokens_there >> n & 1 ? columns : 0);
            if constexpr (RAGGED) raw[n] = before_end(raw[n], start, columns);
        }
    }
};

// One output's sum so far, and the block's partial sums of up to SLOTS segments: [slot][token][row].
template <int SLOTS>
struct SmallSums {
    float part[SLOTS][TOKENS][STRIDE];
    float total[TOKENS][STRIDE];

    __device__ __forceinline__ void store(u32 slot, u32 lane, const float (&sums)[MTILES][NTILES][4]) {
        u32 g = lane / 4, t = lane % 4;
#pragma unroll
        for (int m = 0; m < MTILES; ++m) {
#pragma unroll
            for (int n = 0; n < NTILES; ++n) {
#pragma unroll
                for (int i = 0; i < (HALF ? 2 : 4); ++i) {
                    part[slot][n * 8 + 2 * t + i % 2][m * TILE_ROWS + g + i / 2 * 8] = sums[m][n][i];
                }
            }
        }
    }

    // The sum of all earlier rounds and of this round's `slots` segments.
    __device__ __forceinline__ float add(u32 round, u32 slots, u32 token, u32 row) const {
        float sum = round == 0 ? 0.0f : total[token][row];
        // The weights of the next round are on their way to registers meanwhile.
#pragma unroll 4
        for (u32 slot = 0; slot < slots; ++slot) sum = sum + part[slot][token][row];
        return sum;
    }
};

__device__ __forceinline__ void multiply(float (&sums)[NTILES][4], const uint4& low, const uint4& high,
                                         const uint4 (&x)[NTILES]) {
#pragma unroll
    for (int n = 0; n < NTILES; ++n) mma<W>(sums[n], low.x, high.x, low.y, high.y, x[n].x, x[n].y);
#pragma unroll
    for (int n = 0; n < NTILES; ++n) mma<W>(sums[n], low.z, high.z, low.w, high.w, x[n].z, x[n].w);
}

// The tile whose first output is `feature`, by all threads of the block, for the TOKENS activations from `token` on.
__device__ __forceinline__ void small_tile(const ProductArgs& args, u32 feature, u32 token, SmallSums<WARPS>& shared) {
    const u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32, warps = blockDim.x / 32;
    const u32 g = lane / 4, t = lane % 4;
    const u32 segments = div_ceil(args.columns, SEGMENT);
    const u32 tokens = minimum(args.rows - token, u32(TOKENS));
    SmallLane source;
    source.columns = args.columns;
#pragma unroll
    for (int m = 0; m < MTILES; ++m) {
        source.low[m] = weight_row(args, feature + m * (TILE_ROWS / PARTS), g);
        source.high[m] = HALF ? source.low[m] : weight_row(args, feature + m * (TILE_ROWS / PARTS), g + 8);
    }
    uint4 low[DEPTH][MTILES], high[DEPTH][MTILES];
    u32 column = warp * SEGMENT + t * 4;
#pragma unroll
    for (int i = 0; i < DEPTH; ++i) source.weights(column, i, low[i], high[i]);

    wait_for_inputs();
    source.tokens_there = 0;
#pragma unroll
    for (int n = 0; n < NTILES; ++n) {
        source.input[n] = input_row(args, token + n * 8 + g);
        source.tokens_there |= u32(n * 8 + g < tokens) << n;
    }
    uint4 x[INPUT_DEPTH][NTILES];
#pragma unroll
    for (int i = 0; i < INPUT_DEPTH; ++i) source.activations(column, i, x[i]);

    for (u32 first = 0, round = 0; first < segments; first += warps, ++round) {
        float sums[MTILES][NTILES][4] = {};
#pragma unroll 1
        for (int part = 0; part < GROUPS; part += DEPTH) {
            // The DEPTH groups after these: the next ones, or the first of this warp's next segment.
            const u32 next = part + DEPTH < GROUPS ? column + DEPTH * GROUP
                             : SINGLE ? NOWHERE
                                      : column + (warps * GROUPS - part) * GROUP;
#pragma unroll
            for (int i = 0; i < DEPTH; ++i) {
                const int slot = i % INPUT_DEPTH, ahead = i + INPUT_DEPTH;
#pragma unroll
                for (int m = 0; m < MTILES; ++m) multiply(sums[m], low[i][m], high[i][m], x[slot]);
                if constexpr (GOES_ON) source.weights(next, i, low[i], high[i]);
                if (ahead < DEPTH) {
                    source.activations(column, ahead, x[slot]);
                } else if constexpr (GOES_ON) {
                    source.activations(next, ahead - DEPTH, x[slot]);
                }
            }
            column = next;
        }
        // The threads have read the sums of the round before.
        if (round > 0) __syncthreads();
        shared.store(warp, lane, sums);
        __syncthreads();
        const bool last = first + warps >= segments;
        const u32 slots = minimum(warps, segments - first);
#pragma unroll 1
        for (u32 i = threadIdx.x; i < FEATURES * tokens; i += blockDim.x) {
            const u32 output = i % FEATURES, at = i / FEATURES;
            // Outputs of SwiGLU are eight gates and eight ups of a tile of sixteen rows.
            const u32 row = PARTS == 2 ? output / 8 * 16 + output % 8 : output;
            float sum = shared.add(round, slots, at, row);
            float up = PARTS == 2 ? shared.add(round, slots, at, row + 8) : 0.0f;
            if (!last) {
                shared.total[at][row] = sum;
                if (PARTS == 2) shared.total[at][row + 8] = up;
            } else if (feature + output < args.features) {
                finish(args, token + at, feature + output, sum, up);
            }
        }
    }
}

extern "C" __global__ void __launch_bounds__(WARPS * 32, 1) product_small(const ProductArgs args) {
    __shared__ SmallSums<WARPS> shared;
    launch_dependents();
    small_tile(args, blockIdx.x * FEATURES, blockIdx.y * TOKENS, shared);
}
