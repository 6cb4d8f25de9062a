// Tensor-core products for few activations: one or two column tiles of eight, bound by reading the weights.
//
// A block computes tiles of ROWS rows of the weights by up to TOKENS activations. Its warps take the segments of a row in
// turns. A warp copies the weights that it multiplies to shared memory itself, SLOTS segments ahead, the first of them
// before the kernels before this one are done: kernels that wait hold the weights that they need first, so that memory
// streams on while results pass from kernel to kernel.
//
// Aliases besides those of product.cuh: TOKENS, HALF (tiles of eight rows), WARPS (of a block), RESIDENT (blocks of a
// multiprocessor that have enough registers), SLOTS, KEPT (whether a block keeps all of its activations, or a warp those
// of its segment). Before this comes a product_small_*.cuh.

constexpr int ROWS = HALF ? 8 : 16;
constexpr int OUTPUTS = ROWS / PARTS;
constexpr int NTILES = (TOKENS + 7) / 8;
constexpr u32 STEPS = SEGMENT / STEP, STEP_BYTES = STEP * 2;
// Bytes from row to row of a segment in shared memory: what four lanes read of each of four rows at once falls into
// different banks.
constexpr u32 SKEW = 32, PITCH = SEGMENT * 2 + SKEW;
// Rows of a burst of copies: what was fastest in chains of all products of a model. The fewer the activations, the more
// of the time goes to waiting for them.
constexpr int BURST = TOKENS == 1 ? 1 : TOKENS <= 8 ? 2 : 4;
// A stride at which the rows of a fragment's four columns fall into different banks.
constexpr int STRIDE = ROWS + 4;

static_assert(ROWS % BURST == 0, "bursts make whole tiles");
static_assert(SEGMENT == 32 * CHUNK, "a lane copies one chunk of each row");
static_assert(!HALF || PARTS == 1, "the parts of an output are eight rows apart");

// One block's share of the work, and where things lie in shared memory.
struct Block {
    u32 first_tile;
    u32 tile_step;
    u32 tiles;
    u32 token;
    u32 tokens;
    u32 segments;
    u32 warps;
    u32 warp;
    // Bytes from row to row of this warp's weights: fewer in the last segment, where it is a warp's only one.
    u32 pitch;
    u32 slots;
    u32 input;
    float* parts;

    __device__ __forceinline__ Block(const SmallArgs& args, u8* shared) {
        const u32 groups = div_ceil(args.rows, TOKENS);
        first_tile = blockIdx.x / groups;
        tile_step = gridDim.x / groups;
        tiles = div_ceil(args.features, OUTPUTS);
        token = blockIdx.x % groups * TOKENS;
        tokens = minimum(args.rows - token, u32(TOKENS));
        segments = div_ceil(args.columns, SEGMENT);
        warps = blockDim.x / 32;
        warp = threadIdx.x / 32;
        const u32 left = (args.columns - (segments - 1) * SEGMENT) * 2;
        const u32 last_pitch = warps == segments ? round_up(left, 128) + SKEW : PITCH;
        const u32 weight_bytes = ((warps - 1) * PITCH + last_pitch) * SLOTS * ROWS;
        pitch = warp == warps - 1 ? last_pitch : PITCH;
        slots = shared_address(shared) + warp * SLOTS * ROWS * PITCH;
        const u32 input_rows = (KEPT ? segments : warps) * tokens;
        input = shared_address(shared) + weight_bytes;
        parts = reinterpret_cast<float*>(shared + weight_bytes + input_rows * PITCH);
    }

    __device__ __forceinline__ u32 slot(u32 index) const { return slots + index * ROWS * pitch; }
    // Where an activation's segment lies.
    __device__ __forceinline__ u32 kept_input(u32 segment, u32 n) const { return input + (segment * tokens + n) * PITCH; }
};

// What is left to copy for a warp.
struct Feed {
    u32 tile;
    u32 segment;

    // Starts copying COUNT rows of the segment from row `first` of the tile on.
    template <int COUNT>
    __device__ __forceinline__ void copy_rows(const SmallArgs& args, const Block& block, u32 slot, int first) const {
        const u32 lane = threadIdx.x % 32, column = segment * SEGMENT + lane * CHUNK;
        const bool there = column < args.columns;
        if (tile < block.tiles && lane * 16 < block.pitch - SKEW) {
#pragma unroll
            for (int i = 0; i < COUNT; ++i) {
                const int row = first + i;
                const W* from = tile_row(args, tile * OUTPUTS, row) + (there ? column : 0);
                copy_async_first(block.slot(slot) + row * block.pitch + lane * 16, from, there ? 16 : 0);
            }
        }
        copy_async_commit();
    }

    __device__ __forceinline__ void advance(const Block& block) {
        segment += block.warps;
        if (segment >= block.segments) {
            segment = block.warp;
            tile += block.tile_step;
        }
    }

    // Starts copying the next segment, if there is one more.
    __device__ __forceinline__ void copy(const SmallArgs& args, const Block& block, u32 slot) {
        copy_rows<ROWS>(args, block, slot, 0);
        advance(block);
    }

    // The same, with at most two bursts under way: all blocks of a kernel start at once, while an earlier kernel waits for
    // its activations, and what they ask for first would stand in their way.
    __device__ __forceinline__ void copy_gently(const SmallArgs& args, const Block& block, u32 slot) {
#pragma unroll
        for (int row = 0; row < ROWS; row += BURST) {
            if (row >= 2 * BURST) copy_async_wait<1>();
            copy_rows<BURST>(args, block, slot, row);
        }
        advance(block);
    }
};

// Starts copying a segment of an activation.
__device__ __forceinline__ void copy_input(const SmallArgs& args, u32 row, u32 segment, u32 to) {
    const u32 lane = threadIdx.x % 32, column = segment * SEGMENT + lane * CHUNK;
    const u32 bytes = column < args.columns ? minimum(args.columns - column, u32(CHUNK)) * 2 : 0;
    copy_async_first(to + lane * 16, input_row(args, row) + (bytes > 0 ? column : 0), bytes);
}

// Starts copying all activations of the block.
__device__ __forceinline__ void copy_all_input(const SmallArgs& args, const Block& block) {
    for (u32 i = block.warp; i < block.segments * block.tokens; i += block.warps) {
        const u32 n = i % block.tokens, segment = i / block.tokens;
        copy_input(args, block.token + n, segment, block.kept_input(segment, n));
    }
    copy_async_commit();
}

using Sums = float[NTILES][4];

__device__ __forceinline__ uint2 load_four(u32 address) {
    uint2 four;
    asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];" : "=r"(four.x), "=r"(four.y) : "r"(address) : "memory");
    return four;
}

// COUNT steps. Of each a lane has four neighbours of every row: `low` is the address of its first ones of row
// lane / 4, `input` are those of its columns.
template <int COUNT>
__device__ __forceinline__ void multiply(u32 low, u32 high, const u32 (&input)[NTILES], u32 offset, Sums& sums) {
#pragma unroll
    for (int i = 0; i < COUNT; ++i) {
        const u32 at = offset + i * STEP_BYTES;
        const uint2 a = load_four(low + at), b = HALF ? make_uint2(0, 0) : load_four(high + at);
#pragma unroll
        for (int n = 0; n < NTILES; ++n) {
            const uint2 x = load_four(input[n] + at);
            mma<W>(sums[n], a.x, b.x, a.y, b.y, x.x, x.y);
        }
    }
}

// A segment. Columns without an activation repeat the last one.
__device__ __forceinline__ void multiply_segment(const Block& block, u32 weights, u32 input, Sums& sums) {
    const u32 g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    const u32 low = weights + g * block.pitch + t * 8, high = low + 8 * block.pitch;
    u32 column[NTILES];
#pragma unroll
    for (int n = 0; n < NTILES; ++n) column[n] = input + minimum(n * 8 + g, block.tokens - 1) * PITCH + t * 8;
    if (block.pitch == PITCH) {
        multiply<STEPS>(low, high, column, 0, sums);
    } else {
        // Whole parts of four steps.
        for (u32 at = 0; at < block.pitch - SKEW; at += 4 * STEP_BYTES) multiply<4>(low, high, column, at, sums);
    }
}

// `parts` are of the segment: [token][row].
__device__ __forceinline__ void store_sums(float* parts, const Block& block, const Sums& sums) {
    const u32 g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
#pragma unroll
    for (int n = 0; n < NTILES; ++n) {
#pragma unroll
        for (int i = 0; i < (HALF ? 2 : 4); ++i) {
            const u32 column = n * 8 + 2 * t + i % 2;
            if (column < block.tokens) parts[column * STRIDE + g + i / 2 * 8] = sums[n][i];
        }
    }
}

__device__ __forceinline__ float add_segments(const float* part, const Block& block) {
    float sum = 0.0f;
#pragma unroll 4
    for (u32 i = 0; i < block.segments; ++i) sum = sum + part[i * block.tokens * STRIDE];
    return sum;
}

// The outputs of a tile. `first` is loaded for the first one of this thread if the tile is the block's first.
__device__ __forceinline__ void finish_tile(const SmallArgs& args, const Block& block, u32 tile, Ending first) {
    for (u32 i = threadIdx.x; i < OUTPUTS * block.tokens; i += blockDim.x) {
        const u32 place = i % OUTPUTS, column = i / OUTPUTS, output = tile * OUTPUTS + place;
        if (output >= args.features) continue;
        if (i != threadIdx.x || tile != block.first_tile) first.load(args, block.token + column, output);
        const float* part = block.parts + column * STRIDE + place;
        const float sum = add_segments(part, block);
        const float second = PARTS == 2 ? add_segments(part + 8, block) : 0.0f;
        first.finish(args, block.token + column, output, sum, second);
    }
}

// All tiles of a block.
__device__ __forceinline__ void small_tiles(const SmallArgs& args, u8* shared) {
    const Block block(args, shared);
    Feed feed{block.first_tile, block.warp};
#pragma unroll
    for (int i = 0; i < SLOTS; ++i) feed.copy_gently(args, block, i);
    wait_for_inputs();
    if constexpr (KEPT) copy_all_input(args, block);
    Ending first = {};
    const u32 output = block.first_tile * OUTPUTS + threadIdx.x % OUTPUTS, column = threadIdx.x / OUTPUTS;
    if (column < block.tokens && output < args.features) first.load(args, block.token + column, output);
    if constexpr (KEPT) {
        copy_async_wait<0>();
        __syncthreads();
    }
    u32 slot = 0;
    for (u32 tile = block.first_tile; tile < block.tiles; tile += block.tile_step) {
        for (u32 segment = block.warp; segment < block.segments; segment += block.warps) {
            u32 input = block.kept_input(segment, 0);
            if constexpr (!KEPT) {
                input = block.kept_input(block.warp, 0);
                for (u32 n = 0; n < block.tokens; ++n) copy_input(args, block.token + n, segment, input + n * PITCH);
                copy_async_commit();
            }
            copy_async_wait<KEPT ? SLOTS - 1 : 0>();
            __syncwarp();
            Sums sums = {};
            multiply_segment(block, block.slot(slot), input, sums);
            __syncwarp();
            feed.copy(args, block, slot);
            slot = slot + 1 == SLOTS ? 0 : slot + 1;
            store_sums(block.parts + segment * block.tokens * STRIDE, block, sums);
        }
        __syncthreads();
        finish_tile(args, block, tile, first);
        // All have read the sums that those of the next tile replace.
        __syncthreads();
    }
}

extern "C" __global__ void __launch_bounds__(WARPS * 32, RESIDENT) product_small(const SmallArgs args) {
    extern __shared__ uint4 shared[];
    launch_dependents();
    small_tiles(args, reinterpret_cast<u8*>(shared));
}
