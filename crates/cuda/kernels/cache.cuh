// The paged KV cache, and what attention kernels share.
//
// A layer is [page][head][keys, values][slot][stride]: one head's vector of one token is `stride` values of which the
// first DIM count; the rest pads it to 16 bytes. Scales, where the format needs them, are [page][head][keys,
// values][slot]. Aliases: A activations, C cache, S scales of the cache, SCALED 1 where there are scales.

static_assert(SCALED == 0 || SCALED == 1, "with or without scales");

struct CacheLayer {
    C* values;
    S* scales;
    u32 heads;
    u32 page_shift;
    u32 stride;
    u32 unused;
};

// Number of the key vector of a position of a sequence, in vectors; the value's is `value_offset` further.
__device__ __forceinline__ u32 vector_in_page(const CacheLayer& cache, u32 page, u32 head, u32 position) {
    u32 slot = position & ((1u << cache.page_shift) - 1);
    return ((page * cache.heads + head) * 2 << cache.page_shift) + slot;
}
__device__ __forceinline__ u32 key_vector(
    const CacheLayer& cache, const u32* block_table, u32 head, u32 position
) {
    return vector_in_page(cache, block_table[position >> cache.page_shift], head, position);
}
__device__ __forceinline__ u32 value_offset(const CacheLayer& cache) { return 1u << cache.page_shift; }

// The stored scale of a vector whose largest magnitude is `largest`: it puts that at the end of e4m3. Rounded, but to zero
// only from zero, and to infinity only from infinity. NaNs aside.
__device__ __forceinline__ S stored_scale(float largest) {
    S scale = from_f32<S>(divide(largest, 448.0f));
    if (to_f32(scale) == 0.0f && largest > 0.0f) return Range<S>::min_subnormal();
    if (to_f32(scale) == infinity() && largest < infinity()) return Range<S>::max_finite();
    return scale;
}
// What its values are divided by. A vector of zeros, or of zeros and NaNs, is stored as it is.
__device__ __forceinline__ float divisor_of(S scale) { return to_f32(scale) == 0.0f ? 1.0f : to_f32(scale); }

// Positions of a span: what has a softmax of its own, before spans are merged in ascending order.
constexpr u32 SPAN = 64;

// Positions of the sequence that a query sees: `first` up to, not including, `end`.
struct Visible {
    u32 first;
    u32 end;
};

__device__ __forceinline__ Visible visible_to(u32 position, u32 window) {
    return Visible{position + 1 > window ? position + 1 - window : 0, position + 1};
}

// The part of them in a span, counted from its start.
__device__ __forceinline__ Visible within_span(Visible visible, u32 span) {
    u32 start = span * SPAN;
    u32 first = maximum(visible.first, start), end = minimum(visible.end, start + SPAN);
    return first < end ? Visible{first - start, end - start} : Visible{0, 0};
}

// Softmax of the positions seen so far: the largest score, and the sum of exp(score - largest).
struct Softmax {
    float largest;
    float sum;
};

__device__ __forceinline__ Softmax nothing_seen() { return Softmax{-infinity(), 0.0f}; }

// What outputs are multiplied by when spans are merged.
struct Factors {
    float before;
    float part;
};

// Factors that scale what was seen before, and a further span, to the larger of their largest scores.
__device__ __forceinline__ Factors factors(float before, float largest, float joined) {
    float shift = finite_or_zero(joined);
    return Factors{exponential_below_one(before - shift), exponential_below_one(largest - shift)};
}

__device__ __forceinline__ Factors merge(Softmax& all, Softmax part) {
    float joined = part.largest > all.largest ? part.largest : all.largest;
    Factors by = factors(all.largest, part.largest, joined);
    all = Softmax{joined, mul_add(part.sum, by.part, all.sum * by.before)};
    return by;
}

__device__ __forceinline__ float merge_output(float all, float part, Factors by) {
    return mul_add(part, by.part, all * by.before);
}

// Query rows of one sequence that a block of the prefill kernel works on.
struct Tile {
    u32 first_row;
    u32 tokens;
};

// What all attention kernels are told.
struct AttentionArgs {
    BatchView batch;
    CacheLayer cache;
    // [rows][query_stride] and [rows][out_stride].
    const A* query;
    A* out;
    // Decode: one record of DIM outputs and one Softmax for each [listed row][query head][records].
    float* parts;
    Softmax* part_softmax;
    // Decode: the rows to work on.
    const u32* rows;
    // Prefill: the tiles to work on.
    const Tile* tiles;
    u32 query_stride;
    u32 out_stride;
    u32 query_heads;
    // Query heads of each key head.
    u32 group;
    // Positions that a query sees, its own included; the largest u32 where there is no limit.
    u32 window;
    // Records of each row and head.
    u32 records;
    float scale;
    // Prefill by blocks that stay: tiles times key heads.
    u32 items;
};
