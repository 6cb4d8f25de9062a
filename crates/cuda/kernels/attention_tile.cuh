// Tiles of attention's query rows on the tensor cores: what they keep in shared memory, and their two products.
//
// A warp has 16 rows. A lane has of rows g and g + 8 the columns 2 t and 2 t + 1 of every 8, of scores, weights and
// outputs alike (g = lane / 4, t = lane % 4), so that weights stay where scores were.
//
// Queries, keys and values lie in panels of 64 values, 128 bytes a vector, whose 16-byte chunks change places by the
// vector's low three bits, so that neither copies nor matrix loads meet in a bank. To wgmma this is the 128-byte swizzle.
//
// Aliases: those of attention_mma.cuh; ROWS of a tile, a multiple of 64; STAGES, 2 where there is shared memory for the
// span after the one that is computed, else 1; SHARED, its bytes.

// Hopper's four warps of a warpgroup multiply together, and take the right operand from shared memory.
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
#define WARPGROUPS 1
#else
#define WARPGROUPS 0
#endif

constexpr int THREADS = 2 * ROWS;
constexpr int PANEL = 64;
constexpr int PANELS = (DIM + PANEL - 1) / PANEL;
// Chunks of 16 bytes: of a row of a panel; of a staged vector, zeros beyond DIM included; of a staged span.
constexpr int CHUNK = 8;
constexpr int PANEL_CHUNKS = PANEL / CHUNK;
constexpr int CHUNKS = 2 * DIM_STEPS;
constexpr int STAGE_CHUNKS = PANELS * int(SPAN) * PANEL_CHUNKS;
// Groups of eight columns, of which a lane has two.
constexpr int COLUMNS = 8;

// What a thread copies of the keys, or of the values, of a span: 16 bytes at a time. A cache of single bytes is
// converted on the way.
constexpr bool CONVERTED = sizeof(C) == 1;
constexpr int PACK_VALUES = Pack<C>::VALUES;
constexpr int PACKS = CONVERTED ? (DIM + PACK_VALUES - 1) / PACK_VALUES : CHUNKS;
constexpr int MY_PACKS = (int(SPAN) * PACKS + THREADS - 1) / THREADS;

static_assert(SPAN == PANEL && ROWS % 64 == 0 && (STAGES == 1 || STAGES == 2), "what the layout relies on");

// Sixteen rows of the left operand of a step, and of results 64 columns.
struct Left {
    u32 part[4];
};
struct Columns {
    float part[COLUMNS][4];
};

// A span's weights as left operands: high parts, low parts.
struct Weights {
    Left high[SPAN_STEPS];
    Left low[SPAN_STEPS];
};

// Dynamic shared memory.
struct Shared {
    uint4 query[PANELS * ROWS * PANEL_CHUNKS];
    uint4 keys[STAGES][STAGE_CHUNKS];
    uint4 values[STAGES][STAGE_CHUNKS];
    // Of each thread: outputs of its rows up to the current section.
    float before[PANELS][COLUMNS][4][THREADS];
    Softmax before_softmax[2][THREADS];
    // Of this span and the next.
    u32 vector[2][SPAN];
    float key_scale[2][SPAN];
    float value_scale[2][SPAN];
};

static_assert(sizeof(Shared) == SHARED, "what the launch gives");

// Where a chunk of a vector lies among COUNT staged vectors.
template <u32 COUNT = SPAN>
__device__ __forceinline__ u32 place(u32 vector, u32 chunk) {
    return (chunk / PANEL_CHUNKS * COUNT + vector) * PANEL_CHUNKS + (chunk % PANEL_CHUNKS ^ vector % 8);
}

// -------------------------------------------------------------------------------------------------------- products

__device__ __forceinline__ void clear(Columns& columns) {
#pragma unroll
    for (int j = 0; j < COLUMNS; ++j) {
#pragma unroll
        for (int i = 0; i < 4; ++i) columns.part[j][i] = 0.0f;
    }
}

#if WARPGROUPS

#define COLUMN(j) "+f"(c.part[j][0]), "+f"(c.part[j][1]), "+f"(c.part[j][2]), "+f"(c.part[j][3])
#define ALL_COLUMNS COLUMN(0), COLUMN(1), COLUMN(2), COLUMN(3), COLUMN(4), COLUMN(5), COLUMN(6), COLUMN(7)

__device__ __forceinline__ void begin_products(Columns& c) {
    asm volatile("wgmma.fence.sync.aligned;" : ALL_COLUMNS::"memory");
}
__device__ __forceinline__ void end_products(Columns& c) {
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
    asm volatile("wgmma.wait_group.sync.aligned 0;" : ALL_COLUMNS::"memory");
}

// Shared memory as wgmma sees it: groups of 8 rows of 128 bytes, 1024 bytes apart, with the 128-byte swizzle; and the
// matrix `chunks` further.
__device__ __forceinline__ u32 matrix(const uint4* first) {
    // The same for all lanes, which the compiler is told in this way.
    return __shfl_sync(FULL_WARP, (shared_address(first) & 0x3ffff) >> 4 | 1 << 16, 0);
}
__device__ __forceinline__ u64 descriptor(u32 matrix, int chunks) {
    return u64(1024 >> 4 | 1 << 30) << 32 | (matrix + chunks);
}

// 64 columns of results in registers: += (or =, if FIRST) the left operand, in shared memory or registers, times the
// right one.
#define RESULTS                                                                                                        \
    "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, "  \
    "%24, %25, %26, %27, %28, %29, %30, %31}"
#define STEP_OF_SCORES(format)                                                                                         \
    asm volatile(                                                                                                      \
        "{.reg .pred added; setp.eq.u32 added, %34, 0;\n"                                                              \
        "wgmma.mma_async.sync.aligned.m64n64k16.f32." format "." format RESULTS ", %32, %33, added, 1, 1, 0, 0;}"      \
        : ALL_COLUMNS                                                                                                  \
        : "l"(left), "l"(right), "n"(FIRST))
#define STEP_OF_OUTPUTS(format)                                                                                        \
    asm volatile(                                                                                                      \
        "{.reg .pred added; setp.eq.u32 added, %37, 0;\n"                                                              \
        "wgmma.mma_async.sync.aligned.m64n64k16.f32." format "." format RESULTS                                        \
        ", {%32, %33, %34, %35}, %36, added, 1, 1, 1;}"                                                                \
        : ALL_COLUMNS                                                                                                  \
        : "r"(left.part[0]), "r"(left.part[1]), "r"(left.part[2]), "r"(left.part[3]), "l"(right), "n"(FIRST))

template <int FIRST>
__device__ __forceinline__ void step_of_scores(Columns& c, u64 left, u64 right, bf16) { STEP_OF_SCORES("bf16"); }
template <int FIRST>
__device__ __forceinline__ void step_of_scores(Columns& c, u64 left, u64 right, f16) { STEP_OF_SCORES("f16"); }
template <int FIRST>
__device__ __forceinline__ void step_of_outputs(Columns& c, const Left& left, u64 right, bf16) {
    STEP_OF_OUTPUTS("bf16");
}
template <int FIRST>
__device__ __forceinline__ void step_of_outputs(Columns& c, const Left& left, u64 right, f16) {
    STEP_OF_OUTPUTS("f16");
}

__device__ __forceinline__ void multiply_keys(Columns& c, const uint4* query, const uint4* keys) {
    u32 left = matrix(query + threadIdx.x / 128 * 64 * PANEL_CHUNKS), right = matrix(keys);
    begin_products(c);
#pragma unroll
    for (int step = 0; step < DIM_STEPS; ++step) {
        int panel = step / 4, chunk = step % 4 * 2;
        u64 queries = descriptor(left, panel * ROWS * PANEL_CHUNKS + chunk);
        u64 positions = descriptor(right, panel * SPAN * PANEL_CHUNKS + chunk);
        if (step == 0) {
            step_of_scores<1>(c, queries, positions, A{});
        } else {
            step_of_scores<0>(c, queries, positions, A{});
        }
    }
    end_products(c);
}

__device__ __forceinline__ void multiply_values(Columns& c, const Weights& weights, const uint4* panel) {
    u32 right = matrix(panel);
    begin_products(c);
#pragma unroll
    for (int step = 0; step < SPAN_STEPS; ++step) {
        u64 values = descriptor(right, step * 16 * PANEL_CHUNKS);
        if (step == 0) {
            step_of_outputs<1>(c, weights.high[step], values, A{});
        } else {
            step_of_outputs<0>(c, weights.high[step], values, A{});
        }
        step_of_outputs<0>(c, weights.low[step], values, A{});
    }
    end_products(c);
}

#undef STEP_OF_SCORES
#undef STEP_OF_OUTPUTS
#undef RESULTS
#undef ALL_COLUMNS
#undef COLUMN

#else

__device__ __forceinline__ void multiply_keys(Columns& c, const uint4* query, const uint4* keys) {
    clear(c);
    u32 lane = threadIdx.x % 32, row = threadIdx.x / 32 * 16 + lane % 16;
#pragma unroll
    for (int step = 0; step < DIM_STEPS; ++step) {
        Left left;
        load_matrices(left.part, shared_address(query + place<ROWS>(row, 2 * step + lane / 16)));
#pragma unroll
        for (int j = 0; j < COLUMNS; j += 2) {
            // Both halves of the step for 8 positions, then for the 8 after.
            u32 right[4], position = 8 * j + lane % 8 + lane / 16 * 8;
            load_matrices(right, shared_address(keys + place(position, 2 * step + lane / 8 % 2)));
            multiply<A>(c.part[j], left.part, right[0], right[1]);
            multiply<A>(c.part[j + 1], left.part, right[2], right[3]);
        }
    }
}

__device__ __forceinline__ void multiply_values(Columns& c, const Weights& weights, const uint4* panel) {
    clear(c);
    u32 lane = threadIdx.x % 32;
#pragma unroll
    for (int step = 0; step < SPAN_STEPS; ++step) {
#pragma unroll
        for (int j = 0; j < COLUMNS; j += 2) {
            // Both halves of the step for 8 columns, then for the 8 after.
            u32 right[4], position = 16 * step + lane % 16;
            load_transposed(right, shared_address(panel + place(position, j + lane / 16)));
            multiply<A>(c.part[j], weights.high[step].part, right[0], right[1]);
            multiply<A>(c.part[j + 1], weights.high[step].part, right[2], right[3]);
            multiply<A>(c.part[j], weights.low[step].part, right[0], right[1]);
            multiply<A>(c.part[j + 1], weights.low[step].part, right[2], right[3]);
        }
    }
}

#endif
