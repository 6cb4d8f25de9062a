// The attention phase of the token kernel: the arithmetic of attention_decode_mma.cu and attention_merge.cu, to the bit.
//
// A unit is (section, key head); blocks take units in turns. Its spans fall to the consumer warps in turns (token_span.cuh),
// and the block merges them. Where the row has more than one section, blocks publish a record of each unit, and then merge
// records, a part of a head's dimensions by each warp.
//
// Aliases: those of token_span.cuh.

// Pairs of dimensions of a part of a head, which a warp merges.
constexpr u32 PART_PAIRS = 4, PARTS = PAIRS / PART_PAIRS;

// Where the records of a head's sections are: of each part the outputs, section after section, then (`part` PARTS) largest
// exponents and sums.
__device__ __forceinline__ u64* records_of(const TokenArgs& args, u32 head, u32 part) {
    return args.records + u64(args.max_sections) * (head * (DIM + 2) + part * (2 * PART_PAIRS));
}

__device__ __forceinline__ u32 encode_pair(const Merged& all) {
    const float two[2] = {divide(all.out.x, all.softmax.sum), divide(all.out.y, all.softmax.sum)};
    return encode_word(two, A{});
}

// The softmax of a unit, by the warps that have joined its spans: earlier than its outputs, so that what records are
// multiplied by is known when these come.
__device__ __forceinline__ void post_softmax(
    const TokenArgs& args, const Unit& unit, const Section& section, u32 item, u32 epoch
) {
    __syncwarp();
    const u32 head = item / SECTION;
    if (head >= HEADS || item % SECTION != 0) return;
    float sum = 0.0f;
#pragma unroll
    for (u32 i = 0; i < SECTION; ++i) {
        const Joined joined = section.joined[i][head];
        if (i >= unit.first && i < unit.end) sum = mul_add(joined.sum, joined.by.part, sum * joined.by.before);
    }
    u64* to = records_of(args, unit.kv_head * GROUP + head, PARTS) + 2 * unit.number;
    post_two(to, bits_of(section.joined[SECTION - 1][head].largest), bits_of(sum), epoch);
}

// Merges the spans of a unit: a head for each warp.
__device__ __forceinline__ void merge_unit(
    const TokenArgs& args, const TokenRow& row, const Unit& unit, const Section& section, u32 epoch
) {
    if (warp() >= GROUP) return;
    const u32 head = unit.kv_head * GROUP + warp();
#pragma unroll
    for (u32 pair = lane(); pair < PAIRS; pair += 32) {
        Merged part = merge_spans(section, unit.first, unit.end, warp(), 2 * pair);
        if (row.sections == 1) {
            // What is joined to nothing stays the same, but for the sign of zeros.
            part.out = float2{part.out.x + 0.0f, part.out.y + 0.0f};
            post(args.attended + head * PAIRS + pair, encode_pair(part), epoch);
        } else {
            u64* outputs = records_of(args, head, pair / PART_PAIRS) + unit.number * (2 * PART_PAIRS);
            post_two(outputs + pair % PART_PAIRS * 2, bits_of(part.out.x), bits_of(part.out.y), epoch);
        }
    }
}

// Records that a warp takes at a time, of which it joins STRETCH without looking for the end, and warps of a block that do.
constexpr u32 CHUNK = 64, STRETCH = 8, MERGE_WARPS = 4;
constexpr u32 PER_LOOK = 32 / PART_PAIRS, LOOKS = CHUNK / PER_LOOK;

// How a record is joined to those before it: that and the records' outputs, of a warp. Behind the last record are such as
// change nothing, not the sign of a zero either.
struct MergeArea {
    float4 by[CHUNK];
    float2 outputs[CHUNK][PART_PAIRS];
};
constexpr u32 ATTENTION_BYTES = maximum(u32(sizeof(MergeArea) * MERGE_WARPS), u32(sizeof(AttentionArea)));

// What the next records' outputs are multiplied by, by a warp: a lane has the softmax of two neighbours. `largest` is the
// largest exponent before them, then with them.
__device__ __forceinline__ void take_softmax(MergeArea& area, const u64* from, u32 count, u32 epoch, float& largest) {
    uint4 words[2];
#pragma unroll
    for (u32 k = 0; k < 2; ++k) words[k] = uint4{0, 2 * lane() + k < count ? ~epoch : epoch, 0, epoch};
    Patience patience;
    bool missing;
    do {
        patience.spend();
#pragma unroll
        for (u32 k = 0; k < 2; ++k) {
            if (!are_of(words[k], epoch)) words[k] = peek_two(from + 2 * (2 * lane() + k));
        }
        missing = !are_of(words[0], epoch) || !are_of(words[1], epoch);
    } while (__any_sync(FULL_WARP, missing));
    Softmax part[2];
#pragma unroll
    for (u32 k = 0; k < 2; ++k) {
        const Softmax taken{float_of(words[k].x), float_of(words[k].z)};
        part[k] = 2 * lane() + k < count ? taken : nothing_seen();
    }
    float joined = larger(part[0].largest, part[1].largest);
#pragma unroll
    for (u32 distance = 1; distance < 32; distance *= 2) {
        const float lower = __shfl_up_sync(FULL_WARP, joined, distance);
        if (lane() >= distance) joined = larger(joined, lower);
    }
    const float lower = __shfl_up_sync(FULL_WARP, joined, 1);
    float before = lane() == 0 ? largest : larger(largest, lower);
    largest = larger(largest, __shfl_sync(FULL_WARP, joined, 31));
#pragma unroll
    for (u32 k = 0; k < 2; ++k) {
        const float now = larger(before, part[k].largest), shift = finite_or_zero(now);
        const float4 by{power_of_two(before - shift), power_of_two(part[k].largest - shift), part[k].sum, 0.0f};
        area.by[2 * lane() + k] = 2 * lane() + k < count ? by : float4{1.0f, 0.0f, -0.0f, 0.0f};
        before = now;
    }
}

// The records' outputs: a lane has those of every PER_LOOK-th.
__device__ __forceinline__ void take_outputs(MergeArea& area, const u64* from, u32 count, u32 epoch) {
    const u32 zero = bits_of(-0.0f);
    uint4 words[LOOKS];
#pragma unroll
    for (u32 k = 0; k < LOOKS; ++k) {
        words[k] = uint4{zero, lane() / PART_PAIRS + k * PER_LOOK < count ? ~epoch : epoch, zero, epoch};
    }
    Patience patience;
    bool missing;
    do {
        patience.spend();
        missing = false;
#pragma unroll
        for (u32 k = 0; k < LOOKS; ++k) {
            if (!are_of(words[k], epoch)) words[k] = peek_two(from + 2 * (lane() + 32 * k));
        }
#pragma unroll
        for (u32 k = 0; k < LOOKS; ++k) missing |= !are_of(words[k], epoch);
    } while (__any_sync(FULL_WARP, missing));
#pragma unroll
    for (u32 k = 0; k < LOOKS; ++k) {
        area.outputs[lane() / PART_PAIRS + k * PER_LOOK][lane() % PART_PAIRS] =
            float2{float_of(words[k].x), float_of(words[k].z)};
    }
    __syncwarp();
}

// Merges a part of a head by a warp.
__device__ __forceinline__ void merge_records(
    const TokenArgs& args, const TokenRow& row, MergeArea& area, u32 head, u32 part, u32 epoch
) {
    const u64 *records = records_of(args, head, part), *softmax = records_of(args, head, PARTS);
    Merged all{nothing_seen(), float2{0.0f, 0.0f}};
    float largest = -infinity();
#pragma unroll 1
    for (u32 start = 0; start < row.sections; start += CHUNK) {
        const u32 count = minimum(row.sections - start, CHUNK);
        take_softmax(area, softmax + 2 * start, count, epoch, largest);
        take_outputs(area, records + start * (2 * PART_PAIRS), count, epoch);
#pragma unroll 1
        for (u32 first = 0; first < count; first += STRETCH) {
#pragma unroll
            for (u32 i = 0; i < STRETCH; ++i) {
                const float4 joined = area.by[first + i];
                const float2 out = area.outputs[first + i][lane() % PART_PAIRS];
                const Factors by{joined.x, joined.y};
                all.softmax.sum = mul_add(joined.z, by.part, all.softmax.sum * by.before);
                all.out = float2{merge_output(all.out.x, out.x, by), merge_output(all.out.y, out.y, by)};
            }
        }
        __syncwarp();
    }
    const u32 pair = part * PART_PAIRS + lane();
    if (lane() < PART_PAIRS) post(args.attended + head * PAIRS + pair, encode_pair(all), epoch);
}

// ------------------------------------------------------------------------------------------------------- the phase

// `fill` is the number of the block's first fill of the phase; returns that of the next phase.
__device__ __forceinline__ u32 attention_phase(
    const TokenArgs& args, const Phase& phase, u32 rank, u8* work, const Ring& ring, u32 fill, u32 epoch
) {
    const TokenRow row(args);
    const CacheLayer cache = cache_of(args, phase);
    AttentionArea& area = *reinterpret_cast<AttentionArea*>(work);
    Section& section = area.section;
    u32 turn = 0;
    consumers_sync();
#pragma unroll 1
    for (u32 number = rank; number < row.sections * args.key_heads; number += gridDim.x) {
        const Unit unit(args, row, number);
        // The warp's span: the block's spans fall to warps in turns, so that all have work in long contexts.
        const u32 i = warp() >= turn ? warp() - turn : warp() + CONSUMER_WARPS - turn;
        const bool has_span = i >= unit.first && i < unit.end;
        const u32 poll = query_poll((unit.end - 1 + turn) % CONSUMER_WARPS);
        auto asked = ask_query(args, unit.kv_head, poll);
        WarpSpan span;
        Scales loaded;
        span.has_newest = false;
        if (has_span) {
            span = prepare_span(cache, row, unit, i, ring, fill + (i - unit.first) * SPAN_FILLS, loaded);
        }
        Newest newest(unit.kv_head);
        if (span.has_newest) newest.look(args);
        take_query(asked, poll, epoch, area);
        if (has_span) {
            store_scales(area.scales[i], loaded, span.seen);
            __syncwarp();
        }
        if (span.has_newest) {
            queries_arrive();
            newest.take(args, epoch);
            add_newest(cache, row, unit.kv_head, newest, span, area.scales[i]);
            queries_wait();
        } else if (unit.start + unit.end > row.position / SPAN) {
            queries_sync();
        } else {
            consumers_sync();
        }
        if (has_span) {
            attend_span(args, span, i, ring, fill + (i - unit.first) * SPAN_FILLS, area);
        } else if (i < SECTION) {
            softmax_arrive();
        } else {
            softmax_wait();
            const u32 item = (i - SECTION) * 32 + lane();
            if (i - SECTION < div_ceil(HEADS * SECTION, 32)) {
                join_spans(section, unit.first, unit.end, item);
                if (row.sections > 1) post_softmax(args, unit, section, item, epoch);
            }
        }
        consumers_sync();
        merge_unit(args, row, unit, section, epoch);
        if (has_span && has_stored(span)) release_stored(ring, fill + (i - unit.first) * SPAN_FILLS);
        consumers_sync();
        fill += (unit.end - unit.first) * SPAN_FILLS;
        turn = (turn + SECTION) % CONSUMER_WARPS;
    }
    if (row.sections == 1) return fill;
    MergeArea& merging = reinterpret_cast<MergeArea*>(work)[warp()];
    const u32 first = warp() < MERGE_WARPS ? rank + gridDim.x * warp() : args.query_heads * PARTS;
#pragma unroll 1
    for (u32 part = first; part < args.query_heads * PARTS; part += gridDim.x * MERGE_WARPS) {
        merge_records(args, row, merging, part / PARTS, part % PARTS, epoch);
    }
    consumers_sync();
    return fill;
}
