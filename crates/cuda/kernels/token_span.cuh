// A span in the token kernel: which ones a block has, how they come into its ring, and what a warp does with one.
//
// The copy engine brings what earlier tokens left, ahead of time. The block polls the queries of a key head once; the warp
// that has the last span polls what this token adds to keys and values, and puts it into the copied span.
//
// Aliases: those of attention_span.cuh, with at most eight query heads of a key head.

static_assert(HEADS == GROUP && HALVES == 1 && DIM % 16 == 0 && SWIZZLED, "one block has all heads of a key head");

// Fills of the ring for a span: one of its keys, one of its values, or one of both where they fit.
constexpr u32 SPAN_BYTES = SPAN * ROW_BYTES, SPAN_FILLS = 2 * SPAN_BYTES / FILL_BYTES;
static_assert(SPAN_FILLS * FILL_BYTES == 2 * SPAN_BYTES && SPAN_FILLS <= 2, "whole fills");

// Words of a key or value in `projected`: pairs in A as the cache has them, or single numbers in f32 where they have yet to
// be scaled.
constexpr u32 NEWEST_WORDS = SCALED ? DIM : PAIRS;

// Where a pair of a head lies among those of the head: the two that a lane needs of a step are neighbours.
__device__ __forceinline__ u32 projected_place(u32 pair) {
    return sizeof(C) == 2 ? pair / 8 * 8 + pair % 4 * 2 + pair / 4 % 2 : pair;
}
// The first word of a key or value; `head` counts keys, then values.
__device__ __forceinline__ u32 projected_newest(const TokenArgs& args, u32 head) {
    return args.query_heads * PAIRS + head * NEWEST_WORDS;
}

// ------------------------------------------------------------------------------------------------------------- units

// The token's row.
struct TokenRow {
    const u32* block_table;
    u32 position;
    Visible visible;
    u32 first_section;
    u32 sections;

    __device__ __forceinline__ explicit TokenRow(const TokenArgs& args) {
        block_table = args.batch.block_tables + args.batch.sequences[args.batch.row_sequence[0]].block_table;
        position = args.batch.positions[0];
        visible = visible_to(position, args.window);
        first_section = visible.first / (SPAN * SECTION);
        sections = position / (SPAN * SECTION) - first_section + 1;
    }
};

// One unit: its spans are those of the section from `first` up to, not including, `end`.
struct Unit {
    u32 number;
    u32 kv_head;
    u32 start;
    u32 first;
    u32 end;

    __device__ __forceinline__ Unit(const TokenArgs& args, const TokenRow& row, u32 unit) {
        number = unit / args.key_heads;
        kv_head = unit % args.key_heads;
        start = (row.first_section + number) * SECTION;
        first = maximum(row.visible.first / SPAN, start) - start;
        end = minimum(row.position / SPAN + 1 - start, SECTION);
    }
};

__device__ __forceinline__ CacheLayer cache_of(const TokenArgs& args, const Phase& phase) {
    return CacheLayer{phase.cache, phase.scales, args.key_heads, args.page_shift, args.cache_stride, 0};
}

// Those consumer warps that leave a softmax arrive; those that have no span wait for them.
__device__ __forceinline__ void softmax_arrive() { asm volatile("bar.arrive 2, %0;" ::"n"(CONSUMERS) : "memory"); }
__device__ __forceinline__ void softmax_wait() { asm volatile("bar.sync 2, %0;" ::"n"(CONSUMERS) : "memory"); }

// The warp that has the newest position waits for its key and value first, and does not keep the others: it arrives where they
// meet behind the queries, and later waits for a second meeting, at which they arrive.
__device__ __forceinline__ void queries_sync() {
    asm volatile("bar.sync 4, %0;\nbar.arrive 5, %0;" ::"n"(CONSUMERS) : "memory");
}
__device__ __forceinline__ void queries_arrive() { asm volatile("bar.arrive 4, %0;" ::"n"(CONSUMERS) : "memory"); }
__device__ __forceinline__ void queries_wait() { asm volatile("bar.sync 5, %0;" ::"n"(CONSUMERS) : "memory"); }

// -------------------------------------------------------------------------------------------------------- the producer

// Starts copying a box of vectors, whose bytes `barrier` counts. Packs come to lie where pack_offset() says, because boxes
// start at multiples of 1,024 bytes.
__device__ __forceinline__ void copy_vectors(u32 to, const TensorMap* map, u32 vector, u32 barrier) {
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::
                     "r"(to), "l"(map), "r"(0), "r"(vector), "r"(barrier) : "memory");
}

// Brings a line to the second-level cache.
__device__ __forceinline__ void prefetch(const void* line) { asm volatile("prefetch.global.L2 [%0];" ::"l"(line)); }

// Feeds the ring with the block's spans, in boxes as long as a page, at most a span. What the row does not see is copied
// too.
__device__ __forceinline__ void attention_feed(const TokenArgs& args, const Phase& phase, u32 rank, Ring& ring) {
    const TokenRow row(args);
    const CacheLayer cache = cache_of(args, phase);
    const TensorMap* map = phase.cache_map;
    const u32 box = minimum(1u << args.page_shift, SPAN), values = value_offset(cache);
#pragma unroll 1
    for (u32 number = rank; number < row.sections * args.key_heads; number += gridDim.x) {
        const Unit unit(args, row, number);
        // The key vectors at which the section's runs start, one in each lane.
        static_assert(SECTION * SPAN / RUN == 32, "a lane has a run");
        const u32 position = unit.start * SPAN + lane() * RUN;
        u32 runs = 0;
        if (position < row.visible.end) {
            runs = key_vector(cache, row.block_table, unit.kv_head, position);
            // Those of a run are at most 64 bytes.
            if (SCALED) prefetch(cache.scales + runs);
            if (SCALED) prefetch(cache.scales + runs + values);
        }
#pragma unroll 1
        for (u32 i = unit.first; i < unit.end; ++i) {
#pragma unroll 1
            for (u32 fill = 0; fill < SPAN_FILLS; ++fill) {
                const u32 to = ring.claim();
                if (lane() == 0) ring.expect(FILL_BYTES);
#pragma unroll 1
                for (u32 at = 0; at < SPAN; at += box) {
                    const u32 vector = __shfl_sync(FULL_WARP, runs, (i * SPAN + at) / RUN) + (fill == 0 ? 0 : values);
                    if (lane() > 0) continue;
                    copy_vectors(to + at * ROW_BYTES, map, vector, ring.barrier());
                    if (SPAN_FILLS == 1) copy_vectors(to + SPAN_BYTES + at * ROW_BYTES, map, vector + values, ring.barrier());
                }
                ring.commit();
            }
        }
    }
}

// --------------------------------------------------------------------------------------------------------- a span

__device__ __forceinline__ void store_zeros(u32 address) {
    asm volatile("st.shared.v4.u32 [%0], {%1, %1, %1, %1};" ::"r"(address), "r"(0) : "memory");
}
// Stores to shared memory come before those of the copy engine that what follows allows.
__device__ __forceinline__ void fence_copies() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// What a block has in shared memory until a unit is merged.
struct AttentionArea {
    Section section;
    SpanScales scales[SECTION];
    // The unit's queries as steps take them, then the zeros of the rows that have no head; padded, so that heads are in
    // different banks.
    u32 query[HEADS + 1][PAIRS + 4];
};

// Threads of a block that poll a pair of words of the queries each: few, because the queries of a long context are polled
// by all blocks.
constexpr u32 QUERY_POLLS = HEADS * PAIRS / 2;

// And the warps that do, and store zeros: those before or behind the one that has the newest position, `busy`.
constexpr u32 QUERY_WARPS = div_ceil(QUERY_POLLS + PAIRS, 32);
static_assert(2 * QUERY_WARPS < CONSUMER_WARPS, "some are before or behind");

__device__ __forceinline__ u32 query_poll(u32 busy) {
    return threadIdx.x - (busy < QUERY_WARPS ? CONSUMER_WARPS - QUERY_WARPS : 0) * 32;
}

__device__ __forceinline__ Asked<1, 0> ask_query(const TokenArgs& args, u32 kv_head, u32 poll) {
    return Asked<1, 0>(args.projected + kv_head * GROUP * PAIRS + 2 * poll, poll < QUERY_POLLS ? 1 : 0);
}

__device__ __forceinline__ void take_query(Asked<1, 0>& asked, u32 poll, u32 epoch, AttentionArea& area) {
    if (poll < QUERY_POLLS) {
        const u32 pair = poll % (PAIRS / 2);
        u32* to = &area.query[poll / (PAIRS / 2)][pair / 4 * 8 + pair % 4];
        asked.settle(epoch);
        to[0] = asked.data(0).x;
        to[4] = asked.data(0).y;
    } else if (poll < QUERY_POLLS + PAIRS) {
        area.query[HEADS][poll - QUERY_POLLS] = 0;
    }
    __syncwarp();
}

// This token's key and value, by the warp that has its span: lanes 0 to 15 have so many neighbouring words of the key each, the
// others of the value.
constexpr u32 NEWEST_EACH = NEWEST_WORDS / 16;

struct Newest {
    // What is asked for is found from it again with each look: all registers are taken.
    u32 kv_head;
    uint4 seen[NEWEST_EACH / 2];

    __device__ __forceinline__ explicit Newest(u32 kv_head) : kv_head(kv_head) {}
    __device__ __forceinline__ void look(const TokenArgs& args) {
        const u32 first = projected_newest(args, kv_head + lane() / 16 * args.key_heads) + lane() % 16 * NEWEST_EACH;
#pragma unroll
        for (u32 i = 0; i < NEWEST_EACH / 2; ++i) seen[i] = peek_two(args.projected + first + 2 * i);
    }
    // Until all are there, which have been looked at before.
    __device__ __forceinline__ void take(const TokenArgs& args, u32 epoch) {
        Patience patience;
        while (!are_of(seen[0], epoch) || !are_of(seen[NEWEST_EACH / 2 - 1], epoch)) {
            patience.spend();
            look(args);
        }
        __syncwarp();
    }
};

// Matrices: the first eight heads, then rows of zeros, of the first half of a step's dimensions, then of the second.
__device__ __forceinline__ void load_query(const AttentionArea& area, Query& query) {
    const u32 head = lane() / 8 % 2 == 0 ? minimum(lane() % 8, u32(HEADS)) : HEADS;
    const u32 from = shared_address(&area.query[head][lane() / 16 * 4]);
#pragma unroll
    for (int step = 0; step < DIM_STEPS; ++step) load_matrices(query[step], from + step * 32);
}

__device__ __forceinline__ bool is_whole(Visible seen) { return seen.first == 0 && seen.end == SPAN; }

// Zeros in place of the values that the row does not see, so that their weights, which are zero, make zeros of them. They are
// whole rows, wherever packs lie in these.
__device__ __forceinline__ void clear_unseen(Visible seen, u32 values) {
#pragma unroll 1
    for (u32 pack = lane(); pack < seen.first * PACKS; pack += 32) store_zeros(values + pack * 16);
#pragma unroll 1
    for (u32 pack = seen.end * PACKS + lane(); pack < SPAN * PACKS; pack += 32) store_zeros(values + pack * 16);
    __syncwarp();
}

// Puts this token's key and value into the span.
__device__ __forceinline__ void put_newest(uint4 words, u32 position, u32 keys, u32 values) {
    const u32 step = lane() % 16 / 4, base = (lane() < 16 ? keys : values) + lane() % 4 * 4;
    store_shared(base + pack_offset(position, 2 * step), words.x);
    store_shared(base + pack_offset(position, 2 * step + 1), words.z);
}

// The same where they have yet to be scaled: as the cache has them, which gets them here. `keys`, `values` and `position` are
// where they go in shared memory, `key` is the key's number.
__device__ __forceinline__ void put_scaled(
    const CacheLayer& cache, const uint4* words, u32 position, u32 keys, u32 values, u32 key, SpanScales& scales
) {
    const float numbers[4] = {float_of(words[0].x), float_of(words[0].z), float_of(words[1].x), float_of(words[1].z)};
    float largest = 0.0f;
#pragma unroll
    for (int i = 0; i < 4; ++i) largest = larger(largest, fabsf(numbers[i]));
    const S scale = stored_scale(warp_max<16>(largest));
    const float by = divisor_of(scale);
    u32 codes = 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) codes |= u32(from_f32<e4m3>(divide(numbers[i], by)).bits) << 8 * i;
    const bool is_key = lane() < 16;
    const u32 at = lane() % 16 * 4, vector = is_key ? key : key + value_offset(cache);
    store_shared((is_key ? keys : values) + pack_offset(position, at / 16) + at % 16, codes);
    (is_key ? scales.key : scales.value)[position] = to_f32(scale);
    *reinterpret_cast<u32*>(cache.values + u64(vector) * cache.stride + at) = codes;
    if (at == 0) cache.scales[vector] = scale;
}

// A warp's span of a unit.
struct WarpSpan {
    Visible seen;
    bool has_newest;
    // Addresses in shared memory.
    u32 keys;
    u32 values;
};

// What a warp does before the queries are there. The scales are still on their way then: words have often come by the time that
// a warp first looks, so that all it waits for before delays the token.
__device__ __forceinline__ WarpSpan prepare_span(
    const CacheLayer& cache, const TokenRow& row, const Unit& unit, u32 i, const Ring& ring, u32 fill, Scales& loaded
) {
    const u32 number = unit.start + i;
    WarpSpan span;
    span.seen = within_span(row.visible, number);
    span.has_newest = row.position / SPAN == number;
    load_scales(cache, row.block_table, unit.kv_head, row.visible, number, loaded);
    span.keys = ring.wait(fill);
    span.values = SPAN_FILLS == 2 ? ring.wait(fill + 1) : span.keys + SPAN_BYTES;
    if (!is_whole(span.seen)) clear_unseen(span.seen, span.values);
    __syncwarp();
    return span;
}

// Puts this token's key and value into its span, and into the cache where nobody else does.
__device__ __forceinline__ void add_newest(
    const CacheLayer& cache, const TokenRow& row, u32 kv_head, const Newest& newest, const WarpSpan& span, SpanScales& scales
) {
    if constexpr (SCALED) {
        const u32 key = key_vector(cache, row.block_table, kv_head, row.position);
        put_scaled(cache, newest.seen, row.position % SPAN, span.keys, span.values, key, scales);
    } else {
        put_newest(newest.seen[0], row.position % SPAN, span.keys, span.values);
    }
    __syncwarp();
}

// Whether the warp has stored into the fills of a span.
__device__ __forceinline__ bool has_stored(const WarpSpan& span) { return span.has_newest || !is_whole(span.seen); }

__device__ __forceinline__ void attend_span(
    const TokenArgs& args, const WarpSpan& span, u32 i, const Ring& ring, u32 fill, AttentionArea& area
) {
    Query query;
    load_query(area, query);
    Scores scores;
    compute_scores(span.keys, query, scores);
    u32 read = 0;
#pragma unroll
    for (u32 n = 0; n < SPAN / 8; ++n) read ^= bits_of(scores.value[n][0]);
    if (SPAN_FILLS == 2 && !has_stored(span)) ring.release(fill, read);
    Weights weights;
    compute_weights(area.scales[i], span.seen, args.scale, scores, area.section.softmax[i], weights);
    softmax_arrive();
    compute_outputs(span.values, weights, area.section.outputs[i]);
    __syncwarp();
    if (!has_stored(span)) ring.release(fill + SPAN_FILLS - 1, 0);
}

// The same for fills into which the warp has stored, which is to be before what the copy engine stores next. That takes
// time: after the unit's merge.
__device__ __forceinline__ void release_stored(const Ring& ring, u32 fill) {
    fence_copies();
#pragma unroll
    for (u32 part = 0; part < SPAN_FILLS; ++part) ring.release(fill + part, 0);
}
