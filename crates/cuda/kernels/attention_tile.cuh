// Tiles of attention's query rows on the tensor cores: what they keep in shared memory, their two products, and how
// spans get there.
//
// A warp has 16 rows. A lane has of rows g and g + 8 the columns 2 t and 2 t + 1 of every 8, of scores, weights and
// outputs alike (g = lane / 4, t = lane % 4), so that weights stay where scores were.
//
// Queries, keys and values lie in panels of 64 values, 128 bytes a vector, whose 16-byte chunks change places by the
// vector's low three bits, so that neither copies nor matrix loads meet in a bank. To wgmma this is its widest swizzle.
//
// Aliases: those of attention_mma.cuh; ROWS of a tile; STAGES, 2 where there is shared memory for the span after the
// one that is computed, else 1; SHARED, its bytes.

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

// What a thread copies of the keys, or of the values, of a span: 16 bytes at a time. Those of a cache of single bytes
// it copies to a place of its own, from where it converts them.
constexpr bool CONVERTED = sizeof(C) == 1;
constexpr int PACK_VALUES = Pack<C>::VALUES;
constexpr int PACKS = CONVERTED ? (DIM + PACK_VALUES - 1) / PACK_VALUES : CHUNKS;
constexpr int MY_PACKS = (int(SPAN) * PACKS + THREADS - 1) / THREADS;

static_assert(SPAN == PANEL && (STAGES == 1 || STAGES == 2), "what the layout relies on");
static_assert(ROWS % 64 == 0, "whole warpgroups");

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
    // What each thread's outputs, and each row's softmax, were before the current section.
    float before[PANELS][COLUMNS][4][THREADS];
    Softmax before_softmax[ROWS];
    // Of this span and the next.
    u32 vector[2][SPAN];
    float key_scale[2][SPAN];
    float value_scale[2][SPAN];
};

// Behind it, codes of keys and of values that are to be converted.
constexpr int CODES = CONVERTED ? MY_PACKS * THREADS : 0;
static_assert(sizeof(Shared) + 2 * CODES * sizeof(uint4) == SHARED, "what the launch gives");

__device__ __forceinline__ uint4* codes(Shared& shared) { return reinterpret_cast<uint4*>(&shared + 1); }

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

__device__ __forceinline__ void start_scores(Columns& c, u32 warp, const uint4* query, const uint4* keys) {
    u32 left = matrix(query) + warp / 4 * 64 * PANEL_CHUNKS, right = matrix(keys);
    begin_steps(c);
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
    end_steps();
}

__device__ __forceinline__ void start_outputs(Columns& c, const Weights& weights, const uint4* panel) {
    u32 right = matrix(panel);
    begin_steps(c);
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
    end_steps();
}

#undef STEP_OF_SCORES
#undef STEP_OF_OUTPUTS
#undef RESULTS
#undef ALL_COLUMNS
#undef COLUMN

#else

// These products end where they start.
template <int PENDING>
__device__ __forceinline__ void finish_products(Columns&) {}

__device__ __forceinline__ void start_scores(Columns& c, u32 warp, const uint4* query, const uint4* keys) {
    clear(c);
    u32 lane = threadIdx.x % 32, row = warp * 16 + lane % 16;
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

__device__ __forceinline__ void start_outputs(Columns& c, const Weights& weights, const uint4* panel) {
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

// -------------------------------------------------------------------------------------------------------- staging

// What a block works on: a key head, and tokens, of which the first one's row in the batch and its position are given.
struct Work {
    const u32* block_table;
    u32 kv_head;
    u32 first_row;
    u32 position;
    u32 tokens;
};

__device__ __forceinline__ Visible seen_by(const AttentionArgs& args, const Work& work, u32 token) {
    return visible_to(work.position + token, args.window);
}
__device__ __forceinline__ bool sees_of_span(const AttentionArgs& args, const Work& work, u32 token, u32 span) {
    Visible seen = within_span(seen_by(args, work, token), span);
    return seen.first < seen.end;
}
// What any row sees, and what every row sees.
__device__ __forceinline__ Visible seen_by_any(const AttentionArgs& args, const Work& work) {
    return Visible{seen_by(args, work, 0).first, work.position + work.tokens};
}
__device__ __forceinline__ Visible seen_by_every(const AttentionArgs& args, const Work& work) {
    return Visible{seen_by(args, work, work.tokens - 1).first, work.position + 1};
}

// Where a span is staged: its stage, and which of two spans it is.
struct Slot {
    u32 stage;
    u32 parity;
};

// In place of a page or of the number of a key's vector: no row of the tile sees the position, and zeros are staged.
constexpr u32 UNSEEN = 0xffffffff;

// The page that this thread's position of a span lies in: asked for well before its vector is.
__device__ __forceinline__ u32 find_page(const AttentionArgs& args, const Work& work, u32 span) {
    u32 position = span * SPAN + threadIdx.x;
    Visible any = seen_by_any(args, work);
    if (threadIdx.x >= SPAN || position < any.first || position >= any.end) return UNSEEN;
    return work.block_table[position >> args.cache.page_shift];
}

__device__ __forceinline__ void store_vector(
    const AttentionArgs& args, Shared& shared, const Work& work, u32 page, u32 span, u32 parity
) {
    if (threadIdx.x >= SPAN) return;
    u32 number = vector_in_page(args.cache, page, work.kv_head, span * SPAN + threadIdx.x);
    shared.vector[parity][threadIdx.x] = page == UNSEEN ? UNSEEN : number;
}

// Copies 16 bytes, or zeros.
__device__ __forceinline__ void copy_async_or_zero(uint4* to, const void* from, bool copied) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                 ::"r"(shared_address(to)), "l"(from), "r"(copied ? 16 : 0) : "memory");
}

// The positions and packs of a span that this thread copies.
__device__ __forceinline__ u32 my_position(int i) {
    if (THREADS % PACKS == 0) return threadIdx.x / PACKS + i * (THREADS / PACKS);
    return (threadIdx.x + i * THREADS) / PACKS;
}
__device__ __forceinline__ u32 my_pack(int i) {
    return (THREADS % PACKS == 0 ? threadIdx.x : threadIdx.x + i * THREADS) % PACKS;
}
// Where among the staged chunks the pack goes, if it is not converted.
__device__ __forceinline__ u32 my_place(int i) {
    constexpr int APART = THREADS / PACKS;
    constexpr bool ALIKE = THREADS % PACKS == 0 && APART % 8 == 0;
    if (ALIKE) return place(my_position(0), my_pack(0)) + i * APART * PANEL_CHUNKS;
    return place(my_position(i), my_pack(i));
}
__device__ __forceinline__ bool is_mine(int i) {
    return int(SPAN) * PACKS % THREADS == 0 || threadIdx.x + i * THREADS < SPAN * PACKS;
}

// The pack of a key; values lie `values_from_keys` further.
__device__ __forceinline__ const C* pack_address(const CacheLayer& cache, u32 vector, u32 pack) {
    const char* first = reinterpret_cast<const char*>(cache.values) + pack * 16;
    return reinterpret_cast<const C*>(first + u64(vector) * u32(cache.stride * sizeof(C)));
}
__device__ __forceinline__ u64 values_from_keys(const CacheLayer& cache) {
    return u64(value_offset(cache)) * cache.stride;
}

// The scales of this thread's position of a span, on their way.
struct Scales {
    float key;
    float value;
};

// Starts what brings a span to shared memory.
__device__ __forceinline__ void start_span(const CacheLayer& cache, Shared& shared, Slot slot, Scales& scales) {
    const u32* vector = shared.vector[slot.parity];
    uint4* keys = CONVERTED ? codes(shared) : shared.keys[slot.stage];
    uint4* values = CONVERTED ? codes(shared) + CODES : shared.values[slot.stage];
#pragma unroll
    for (int i = 0; i < MY_PACKS; ++i) {
        if (!is_mine(i)) continue;
        u32 number = vector[my_position(i)], to = CONVERTED ? threadIdx.x + i * THREADS : my_place(i);
        bool copied = number != UNSEEN && my_pack(i) * PACK_VALUES < DIM;
        const C* from = pack_address(cache, copied ? number : 0, my_pack(i));
        copy_async_or_zero(keys + to, from, copied);
        copy_async_or_zero(values + to, from + values_from_keys(cache), copied);
    }
    copy_async_commit();
    if (SCALED && threadIdx.x < SPAN) {
        u32 number = vector[threadIdx.x];
        bool seen = number != UNSEEN;
        scales.key = seen ? to_f32(cache.scales[number]) : 0.0f;
        scales.value = seen ? to_f32(cache.scales[number + value_offset(cache)]) : 0.0f;
    }
}

__device__ __forceinline__ void convert(const uint4* codes, uint4* to) {
#pragma unroll
    for (int i = 0; i < MY_PACKS; ++i) {
        if (!is_mine(i)) continue;
        Pack<C> pack;
        pack.raw.bits = codes[threadIdx.x + i * THREADS];
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            Pack<A> widened;
#pragma unroll
            for (int word = 0; word < 4; ++word) {
                u32 pair = pack.raw.word(half * 2 + word / 2) >> word % 2 * 16;
                // What pads a vector in the cache may be anything.
                bool within = (my_pack(i) * 2 + half) * CHUNK < DIM;
                widened.raw.set_word(word, within ? widen(pair & 0xffff, A{}) : 0);
            }
            to[place(my_position(i), my_pack(i) * 2 + half)] = widened.raw.bits;
        }
    }
}

// Brings this thread's part of a started span to where it is used.
__device__ __forceinline__ void finish_span(Shared& shared, Slot slot, const Scales& scales) {
    if (CONVERTED) {
        copy_async_wait<0>();
        convert(codes(shared), shared.keys[slot.stage]);
        convert(codes(shared) + CODES, shared.values[slot.stage]);
    }
    if (SCALED && threadIdx.x < SPAN) {
        shared.key_scale[slot.parity][threadIdx.x] = scales.key;
        shared.value_scale[slot.parity][threadIdx.x] = scales.value;
    }
}

// Makes this thread's part of the span seen after the next barrier.
__device__ __forceinline__ void publish() {
    copy_async_wait<0>();
#if WARPGROUPS
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}
