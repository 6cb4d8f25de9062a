// Attention of tiles of query rows on Hopper (sm_90a), in the arithmetic of attention_mma.cuh to the bit, for heads of 64
// values. Blocks stay and take one tile and key head after another.
//
// One warpgroup copies queries, keys and values to a ring of stages in shared memory, where it converts what is stored in
// single bytes. The others, the consumers, have 64 rows each. While the tensor cores multiply a span's weights by its values,
// and the next span's keys before that, a consumer computes the largest scores of the next one; the outputs of a span are
// added and the next one's weights made in one stretch of instructions, where the exponentials, of which a multiprocessor makes
// sixteen a cycle, find others between them.
//
// Aliases: those of attention_rows.cuh.

static_assert(DIM == PANEL, "one panel");

constexpr int GROUPS = ROWS / 64;
constexpr int CONSUMERS = 2 * ROWS;
constexpr int COPIERS = 128;
constexpr int THREADS = CONSUMERS + COPIERS;
// What setmaxnreg leaves them; together no more than they have when they start.
constexpr int COPIER_REGISTERS = GROUPS > 2 ? 56 : 64, CONSUMER_REGISTERS = GROUPS > 2 ? 152 : 208;
constexpr u32 STAGES = 6;

// Packs of 16 bytes of a vector; vectors that copiers bring at once, and the rounds in which they bring a span: multiples of
// eight, so that a thread's places in shared memory have constant distances.
constexpr u32 PACKS = DIM / Pack<C>::VALUES;
constexpr u32 AT_ONCE = COPIERS / PACKS;
constexpr int ROUNDS = SPAN / AT_ONCE;
// Those of a warp.
constexpr u32 WARP_AT_ONCE = 32 / PACKS;

// Keys, then values.
struct Stage {
    uint4 vectors[2 * STAGE_CHUNKS];
};

struct Shared {
    uint4 query[2][ROWS * PANEL_CHUNKS];
    Stage stages[STAGES];
    Before before;
    float key_scale[STAGES][SPAN];
    float value_scale[STAGES][SPAN];
    // Of a stage, and of queries: has come, may be replaced.
    u64 full[STAGES];
    u64 empty[STAGES];
    u64 query_full[2];
    u64 query_empty[2];
    // What belongs to the queries. No tokens: there is no more.
    Work work[2];
    // Whether some value is not finite that not all of its rows see.
    u32 failed[2];
};

// Behind it, codes that are to be converted: of the span that is copied, and the one before.
constexpr u32 SPAN_CODES = CONVERTED ? 2 * SPAN * PACKS : 0;
static_assert((sizeof(Shared) + 15) / 16 * 16 + 2 * SPAN_CODES * sizeof(uint4) == SHARED, "what the launch gives");

// Which stage is next, and the parity of its phase.
struct Ring {
    u32 stage;
    u32 parity;

    __device__ __forceinline__ void advance() {
        stage = stage + 1 == STAGES ? 0 : stage + 1;
        parity ^= stage == 0 ? 1 : 0;
    }
};

// Spans that some row of a work sees, and those that every row sees all of.
struct Spans {
    u32 first;
    u32 end;
    u32 first_whole;
    u32 whole;

    // An edge is a span that some rows do not see all of.
    __device__ __forceinline__ bool edge(u32 span) const { return span - first_whole >= whole; }
};

__device__ __forceinline__ Spans spans_of(const AttentionArgs& args, const Work& work) {
    Visible any = seen_by_any(args, work), every = seen_by_every(args, work);
    u32 first_whole = div_ceil(every.first, SPAN), end_whole = every.end / SPAN;
    return Spans{
        any.first / SPAN, div_ceil(any.end, SPAN), first_whole, end_whole > first_whole ? end_whole - first_whole : 0
    };
}

// ------------------------------------------------------------------------------------------------------ barriers

__device__ __forceinline__ void barrier_init(u64& barrier, u32 arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(&barrier)), "r"(arrivals) : "memory");
}
__device__ __forceinline__ void barrier_arrive(u64& barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(&barrier)) : "memory");
}
// Waits for the end of the phase of this parity.
__device__ __forceinline__ void barrier_wait(u64& barrier, u32 parity) {
    asm volatile(
        "{\n"
        ".reg .pred done;\n"
        "again:\n"
        "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
        "@!done bra again;\n"
        "}\n" ::"r"(shared_address(&barrier)), "r"(parity)
        : "memory");
}

__device__ __forceinline__ void start_barriers(Shared& shared) {
    if (threadIdx.x == 0) {
        for (u32 i = 0; i < STAGES; ++i) {
            barrier_init(shared.full[i], COPIERS);
            barrier_init(shared.empty[i], CONSUMERS / 32);
        }
        for (u32 i = 0; i < 2; ++i) {
            barrier_init(shared.query_full[i], COPIERS);
            barrier_init(shared.query_empty[i], CONSUMERS / 32);
        }
    }
    __syncthreads();
}

// Whether any copier says so.
__device__ __forceinline__ bool any_copier(bool mine) {
    u32 any;
    asm volatile(
        "{\n"
        ".reg .pred mine, any;\n"
        "setp.ne.u32 mine, %1, 0;\n"
        "barrier.cta.red.or.pred any, 1, %2, mine;\n"
        "selp.u32 %0, 1, 0, any;\n"
        "}\n"
        : "=r"(any)
        : "r"(u32(mine)), "n"(COPIERS)
        : "memory");
    return any != 0;
}

// -------------------------------------------------------------------------------------------------------- copies

// A copier's packs: which of a vector, and the position of the first.
__device__ __forceinline__ u32 my_thread() { return threadIdx.x - CONSUMERS; }
__device__ __forceinline__ u32 my_pack() { return my_thread() % PACKS; }
__device__ __forceinline__ u32 my_position() { return my_thread() / PACKS; }
// The position of a span whose vectors it finds for its warp.
__device__ __forceinline__ u32 my_find() {
    u32 vector = my_thread() % 16;
    return vector / WARP_AT_ONCE * AT_ONCE + my_thread() / 32 * WARP_AT_ONCE + vector % WARP_AT_ONCE;
}

__device__ __forceinline__ void start_queries(
    const AttentionArgs& args, Shared& shared, const Work& work, u32 number
) {
    u32 slot = number % 2;
    barrier_wait(shared.query_empty[slot], number / 2 % 2 ^ 1);
    if (my_thread() == 0) shared.work[slot] = work;
    shared.failed[slot] = 0;
    // Rounded up, it divides all rows of a tile.
    static_assert(ROWS <= 256, "else the rounding shows");
    const u32 reciprocal = div_ceil(1u << 16, args.group);
    // Where a cache is converted, more leaves too few registers.
    constexpr int AT_A_TIME = CONVERTED ? 1 : 4;
#pragma unroll AT_A_TIME
    for (u32 i = my_thread(); i < ROWS * CHUNKS; i += COPIERS) {
        u32 row = i / CHUNKS, chunk = i % CHUNKS, token = row * reciprocal >> 16;
        u32 head = work.kv_head * args.group + row - token * args.group;
        bool copied = token < work.tokens;
        const A* from = args.query + u64(work.first_row + token) * args.query_stride + head * DIM + chunk * CHUNK;
        copy_async_or_zero(shared.query[slot] + place(row, chunk), copied ? from : args.query, copied);
    }
}

// A word of the batch, on its way before wait_for_inputs().
__device__ __forceinline__ u32 batch_word(const u32* word) {
    u32 value;
    asm volatile("ld.global.b32 %0, [%1];" : "=r"(value) : "l"(word) : "memory");
    return value;
}

// The page of a position: asked for well before its vectors are.
__device__ __forceinline__ u32 find_page(const AttentionArgs& args, const Work& work, u32 block_table, u32 position) {
    const Visible any = seen_by_any(args, work);
    if (position < any.first || position >= any.end) return UNSEEN;
    return batch_word(args.batch.block_tables + block_table + (position >> args.cache.page_shift));
}

// Where codes of a span wait.
__device__ __forceinline__ uint4* codes(Shared& shared, u32 span) {
    return reinterpret_cast<uint4*>(&shared + 1) + span % 2 * SPAN_CODES;
}

// Starts the copies of a span, where the page is that of the position that this thread finds. Returns the scale of a vector
// there, a key's in the first half of a warp, else a value's.
__device__ __forceinline__ float start_span(
    const CacheLayer& cache, Shared& shared, const Work& work, u32 span, u32 page, const Ring& ring
) {
    barrier_wait(shared.empty[ring.stage], ring.parity ^ 1);
    Stage& stage = shared.stages[ring.stage];
    bool seen = page != UNSEEN;
    u32 vector = seen ? vector_in_page(cache, page, work.kv_head, span * SPAN + my_find()) : 0;
    float scale = 0.0f;
    if (SCALED && seen) scale = to_f32(cache.scales[vector + my_thread() % 32 / 16 * value_offset(cache)]);
    u64 address = reinterpret_cast<u64>(cache.values) + u64(vector) * u32(DIM * sizeof(C));
    u32 first = my_thread() % 32 / PACKS, all_seen = __ballot_sync(FULL_WARP, seen) >> first;
    u32 to = CONVERTED ? my_position() * PACKS + my_pack() : place(my_position(), my_pack());
    uint4* keys = (CONVERTED ? codes(shared, span) : stage.vectors) + to;
    uint4* values = keys + (CONVERTED ? SPAN * PACKS : STAGE_CHUNKS);
#pragma unroll
    for (u32 i = 0; i < ROUNDS; ++i) {
        constexpr u32 FURTHER = AT_ONCE * (CONVERTED ? PACKS : PANEL_CHUNKS);
        u64 vectors = __shfl_sync(FULL_WARP, address, first + i * WARP_AT_ONCE);
        // Vectors are aligned to their size.
        const char* from = reinterpret_cast<const char*>(vectors | my_pack() * 16);
        bool copied = (all_seen & 1u << i * WARP_AT_ONCE) != 0;
        copy_async_or_zero(keys + i * FURTHER, from, copied);
        copy_async_or_zero(values + i * FURTHER, from + value_offset(cache) * u32(DIM * sizeof(C)), copied);
    }
    return scale;
}

// Widens a pack to two neighbouring chunks, which are apart by the last bit of their place.
__device__ __forceinline__ void convert(const uint4& codes, uint4* stage, u32 to) {
    Pack<C> narrow;
    narrow.raw.bits = codes;
#pragma unroll
    for (u32 half = 0; half < 2; ++half) {
        Pack<A> wide;
#pragma unroll
        for (u32 word = 0; word < 4; ++word) {
            u32 pair = narrow.raw.word(half * 2 + word / 2) >> word % 2 * 16;
            wide.raw.set_word(word, widen(pair & 0xffff, A{}));
        }
        stage[to ^ half] = wide.raw.bits;
    }
}

// Hands a started span whose copies have come to the consumers. Where it is to be checked, a value that is not finite fails
// the work.
__device__ __forceinline__ void finish_span(
    Shared& shared, u32 span, u32 ended, float scale, bool checked, u32 slot
) {
    Stage& stage = shared.stages[ended];
    if (CONVERTED) {
        // Keys and values follow each other among the codes as in the stage.
        const uint4* from = codes(shared, span) + my_position() * PACKS + my_pack();
        u32 to = place(my_position(), my_pack() * 2);
#pragma unroll 1
        for (u32 i = 0; i < 2 * ROUNDS; ++i) {
            convert(from[i * AT_ONCE * PACKS], stage.vectors, to + i * AT_ONCE * PANEL_CHUNKS);
        }
    }
    if (SCALED) {
        float* scales = my_thread() % 32 < 16 ? shared.key_scale[ended] : shared.value_scale[ended];
        scales[my_find()] = scale;
    }
    if (checked) {
        bool bad = false;
        constexpr u32 CHUNKS_OF_PACK = CHUNKS / PACKS;
#pragma unroll 1
        for (u32 i = 0; i < ROUNDS * CHUNKS_OF_PACK; ++i) {
            u32 position = my_position() + i / CHUNKS_OF_PACK * AT_ONCE;
            u32 chunk = my_pack() * CHUNKS_OF_PACK + i % CHUNKS_OF_PACK;
            bad = bad || not_finite(stage.vectors[STAGE_CHUNKS + place(position, chunk)]);
        }
        // Each notes it, so that each sees it.
        if (any_copier(bad)) shared.failed[slot] = 1;
    }
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    barrier_arrive(shared.full[ended]);
}

// Copies what the `number`th work of this block needs. Returns whether it fails: whether values that some rows must not see
// are not finite.
__device__ __forceinline__ bool copy_work(
    const AttentionArgs& args, Shared& shared, const Work& work, u32 block_table, u32 number, Ring& ring
) {
    const Spans spans = spans_of(args, work);
    u32 page = find_page(args, work, block_table, spans.first * SPAN + my_find());
    // What is known without the kernels before this one is, when the first work comes here.
    wait_for_inputs();
    start_queries(args, shared, work, number);
    float scale = 0.0f;
    // A span is finished after the next one is started.
    for (u32 span = spans.first; span <= spans.end; ++span) {
        u32 ended = ring.stage == 0 ? STAGES - 1 : ring.stage - 1;
        float last_scale = scale;
        if (span < spans.end) {
            scale = start_span(args.cache, shared, work, span, page, ring);
            page = find_page(args, work, block_table, (span + 1) * SPAN + my_find());
            ring.advance();
        }
        copy_async_commit();
        if (span == spans.first) continue;
        copy_async_wait<1>();
        bool checked = work.tokens > 1 && spans.edge(span - 1);
        finish_span(shared, span - 1, ended, last_scale, checked, number % 2);
        if (span - 1 == spans.first) barrier_arrive(shared.query_full[number % 2]);
    }
    return shared.failed[number % 2] != 0;
}

// The tiles of a block, for each key head: every second round of all blocks goes back, as tiles are sorted by how long they
// take. A tile that fails is computed again token by token, so that all rows see the same.
__device__ __forceinline__ void copy_all(const AttentionArgs& args, Shared& shared) {
    Ring ring{0, 0};
    u32 number = 0;
    for (u32 item = blockIdx.x; item < args.items; item = 2 * round_up(item + 1, gridDim.x) - 1 - item) {
        const Tile& listed = args.tiles[item / args.cache.heads];
        const Tile tile{batch_word(&listed.first_row), batch_word(&listed.tokens)};
        u32 position = batch_word(args.batch.positions + tile.first_row);
        u32 sequence = batch_word(args.batch.row_sequence + tile.first_row);
        u32 block_table = batch_word(&args.batch.sequences[sequence].block_table);
        Work work{item % args.cache.heads, tile.first_row, position, tile.tokens};
        for (u32 end = work.first_row + tile.tokens; work.first_row < end;) {
            if (copy_work(args, shared, work, block_table, number++, ring)) {
                work.tokens = 1;
            } else {
                work.first_row += work.tokens;
                work.position += work.tokens;
            }
        }
    }
    barrier_wait(shared.query_empty[number % 2], number / 2 % 2 ^ 1);
    if (my_thread() == 0) shared.work[number % 2].tokens = 0;
    barrier_arrive(shared.query_full[number % 2]);
}

// ----------------------------------------------------------------------------------------------------- consumers

// What a consumer needs for every work.
struct Consumer {
    // The matrices of its queries in the first slot, and of the first stage's keys.
    u32 query;
    u32 keys;
    Ring ring;
};

// Lets what a barrier is for be replaced: one arrival a warp.
__device__ __forceinline__ void release(u64& barrier) {
    if (threadIdx.x % 32 == 0) barrier_arrive(barrier);
}

__device__ __forceinline__ Consumer consumer(Shared& shared) {
    // The same for all lanes, which the compiler is told in this way.
    u32 group = __shfl_sync(FULL_WARP, threadIdx.x / 128, 0);
    u32 query = matrix(shared.query[0]) + group * 64 * PANEL_CHUNKS;
    return Consumer{query, matrix(shared.stages[0].vectors), {0, 0}};
}

// Computes the rows of a work, except where it fails.
__device__ __forceinline__ void consume(
    const AttentionArgs& args, Shared& shared, const Work& work, u32 number, Consumer& me
) {
    constexpr u32 STAGE = sizeof(Stage) / sizeof(uint4), VALUES = STAGE_CHUNKS;
    Spans spans = spans_of(args, work);
    // So that they are not computed again for every span.
    asm volatile("" : "+r"(spans.first), "+r"(spans.end), "+r"(spans.first_whole), "+r"(spans.whole));
    u32 query = me.query + number % 2 * ROWS * PANEL_CHUNKS;
    Rows rows;
    start_rows(args, work, shared.before, rows);
    Columns out[1], scores, part;
    clear(out[0]);
    clear(part);
    Weights weights;
    Pair by{{NOTHING_ADDED, NOTHING_ADDED}}, undo{{1.0f, 1.0f}}, sum;

    barrier_wait(shared.full[me.ring.stage], me.ring.parity);
    bool edge = spans.edge(spans.first);
    start_scores(scores, query, me.keys + me.ring.stage * STAGE);
    finish_products<0>(scores);
    Pair largest =
        exponents_of_span(args, work, spans.first, edge, rows, shared.key_scale[me.ring.stage], scores);
    u32 stage = 0;
    for (u32 span = spans.first;; ++span) {
        // The products by the values of the span before are under way, or there are none. The compiler moves a wait for
        // products to the start of its stretch of code, which is the loop's: what is to overlap them comes at its end.
        finish_products<0>(part);
        if (span != spans.first) release(shared.empty[stage]);
        if (NORMALISED) multiply_rows(part, undo.row[0], undo.row[1]);
        add_outputs(out[0], part, by);
        stage = me.ring.stage;
        sum = weights_of_span(args, work, span, edge, rows, shared.value_scale[stage], scores, undo);
        split_weights(scores, weights);
        if (span % SECTION == 0 && span != spans.first) {
            close_section(args, work, span / SECTION - 1, shared.before, rows, out);
        }
        if (span + 1 == spans.end) break;
        me.ring.advance();
        barrier_wait(shared.full[me.ring.stage], me.ring.parity);
        start_scores(scores, query, me.keys + me.ring.stage * STAGE);
        start_outputs(part, weights, me.keys + stage * STAGE + VALUES);
        join_span(args, work, span, edge, largest, sum, rows, out, by);
        edge = spans.edge(span + 1);
        finish_products<1>(scores);
        largest =
            exponents_of_span(args, work, span + 1, edge, rows, shared.key_scale[me.ring.stage], scores);
    }
    me.ring.advance();
    bool failed = shared.failed[number % 2] != 0;
    __syncwarp();
    release(shared.query_empty[number % 2]);
    start_outputs(part, weights, me.keys + stage * STAGE + VALUES);
    join_span(args, work, spans.end - 1, edge, largest, sum, rows, out, by);
    finish_products<0>(part);
    release(shared.empty[stage]);
    if (NORMALISED) multiply_rows(part, undo.row[0], undo.row[1]);
    add_outputs(out[0], part, by);
    close_section(args, work, (spans.end - 1) / SECTION, shared.before, rows, out);
    if (!failed) store_rows(args, work, shared.before, rows);
}

__device__ __forceinline__ void consume_all(const AttentionArgs& args, Shared& shared) {
    Consumer me = consumer(shared);
    for (u32 number = 0;; ++number) {
        barrier_wait(shared.query_full[number % 2], number / 2 % 2);
        const Work work = shared.work[number % 2];
        if (work.tokens == 0) return;
        consume(args, shared, work, number, me);
    }
}

extern "C" __global__ __launch_bounds__(THREADS, 1) void attention_prefill_wgmma(const AttentionArgs args) {
    extern __shared__ __align__(1024) uint4 memory[];
    Shared& shared = *reinterpret_cast<Shared*>(memory);
    launch_dependents();
    start_barriers(shared);
    if (threadIdx.x >= CONSUMERS) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(COPIER_REGISTERS));
        copy_all(args, shared);
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(CONSUMER_REGISTERS));
        wait_for_inputs();
        consume_all(args, shared);
    }
}
