// Tiles of attention's query rows on the tensor cores, whose spans all threads of a block copy: what is in shared memory, the
// two products, and how spans get there.
//
// Aliases: those of attention_rows.cuh; STAGES, 2 where there is shared memory for the span after the one that is computed,
// else 1.

constexpr int THREADS = 2 * ROWS;

// What a thread copies of the keys, or of the values, of a span: 16 bytes at a time. Those of a cache of single bytes
// it copies to a place of its own, from where it converts them.
constexpr int PACK_VALUES = Pack<C>::VALUES;
constexpr int PACKS = CONVERTED ? (DIM + PACK_VALUES - 1) / PACK_VALUES : CHUNKS;
constexpr int MY_PACKS = (int(SPAN) * PACKS + THREADS - 1) / THREADS;

static_assert(STAGES == 1 || STAGES == 2, "the spans that are staged");

// Dynamic shared memory.
struct Shared {
    uint4 query[PANELS * ROWS * PANEL_CHUNKS];
    uint4 keys[STAGES][STAGE_CHUNKS];
    uint4 values[STAGES][STAGE_CHUNKS];
    Before before;
    // Of this span and the next.
    u32 vector[2][SPAN];
    float key_scale[2][SPAN];
    float value_scale[2][SPAN];
};

// Behind it, codes of keys and of values that are to be converted.
constexpr int CODES = CONVERTED ? MY_PACKS * THREADS : 0;
static_assert(sizeof(Shared) + 2 * CODES * sizeof(uint4) == SHARED, "what the launch gives");

__device__ __forceinline__ uint4* codes(Shared& shared) { return reinterpret_cast<uint4*>(&shared + 1); }

// -------------------------------------------------------------------------------------------------------- products

#if WARPGROUPS

__device__ __forceinline__ void start_scores(Columns& c, u32 warp, const uint4* query, const uint4* keys) {
    start_scores(c, matrix(query) + warp / 4 * 64 * PANEL_CHUNKS, matrix(keys));
}
__device__ __forceinline__ void start_outputs(Columns& c, const Weights& weights, const uint4* panel) {
    start_outputs(c, weights, matrix(panel));
}

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

// Where a span is staged: its stage, and which of two spans it is.
struct Slot {
    u32 stage;
    u32 parity;
};

// The page that this thread's position of a span lies in: asked for well before its vector is.
__device__ __forceinline__ u32 find_page(
    const AttentionArgs& args, const Work& work, const u32* block_table, u32 span
) {
    u32 position = span * SPAN + threadIdx.x;
    Visible any = seen_by_any(args, work);
    if (threadIdx.x >= SPAN || position < any.first || position >= any.end) return UNSEEN;
    return block_table[position >> args.cache.page_shift];
}

__device__ __forceinline__ void store_vector(
    const AttentionArgs& args, Shared& shared, const Work& work, u32 page, u32 span, u32 parity
) {
    if (threadIdx.x >= SPAN) return;
    u32 number = vector_in_page(args.cache, page, work.kv_head, span * SPAN + threadIdx.x);
    shared.vector[parity][threadIdx.x] = page == UNSEEN ? UNSEEN : number;
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
