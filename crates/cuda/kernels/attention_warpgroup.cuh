// Hopper's wgmma for tiles of attention: the products of 64 rows, by the four warps of a warpgroup together. The right operand
// is in shared memory, in panels as attention_rows.cuh lays them.

#if WARPGROUPS

#define COLUMN(j) "+f"(c.part[j][0]), "+f"(c.part[j][1]), "+f"(c.part[j][2]), "+f"(c.part[j][3])
#define ALL_COLUMNS COLUMN(0), COLUMN(1), COLUMN(2), COLUMN(3), COLUMN(4), COLUMN(5), COLUMN(6), COLUMN(7)

__device__ __forceinline__ void begin_steps(Columns& c) {
    asm volatile("wgmma.fence.sync.aligned;" : ALL_COLUMNS::"memory");
}
__device__ __forceinline__ void end_steps() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// Waits for the products, of which PENDING were started later.
template <int PENDING>
__device__ __forceinline__ void finish_products(Columns& c) {
    asm volatile("wgmma.wait_group.sync.aligned %32;" : ALL_COLUMNS : "n"(PENDING) : "memory");
}

// Shared memory as wgmma sees it: groups of 8 rows of 128 bytes, 1024 bytes apart, with the 128-byte swizzle; and the
// matrix `chunks` further.
__device__ __forceinline__ u32 matrix(const uint4* first) { return (shared_address(first) & 0x3ffff) >> 4 | 1 << 16; }
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

// A warpgroup's rows of queries times a span's keys.
__device__ __forceinline__ void start_scores(Columns& c, u32 queries, u32 keys) {
    begin_steps(c);
#pragma unroll
    for (int step = 0; step < DIM_STEPS; ++step) {
        int panel = step / 4, chunk = step % 4 * 2;
        u64 left = descriptor(queries, panel * ROWS * PANEL_CHUNKS + chunk);
        u64 right = descriptor(keys, panel * SPAN * PANEL_CHUNKS + chunk);
        if (step == 0) {
            step_of_scores<1>(c, left, right, A{});
        } else {
            step_of_scores<0>(c, left, right, A{});
        }
    }
    end_steps();
}

// Its weights times a panel of the span's values.
__device__ __forceinline__ void start_outputs(Columns& c, const Weights& weights, u32 panel) {
    begin_steps(c);
#pragma unroll
    for (int step = 0; step < SPAN_STEPS; ++step) {
        u64 values = descriptor(panel, step * 16 * PANEL_CHUNKS);
        if (step == 0) {
            step_of_outputs<1>(c, weights.high[step], values, A{});
        } else {
            step_of_outputs<0>(c, weights.high[step], values, A{});
        }
        step_of_outputs<0>(c, weights.low[step], values, A{});
    }
    end_steps();
}

#undef STEP_OF_SCORES
#undef STEP_OF_OUTPUTS
#undef RESULTS
#undef ALL_COLUMNS
#undef COLUMN

#endif
