// What the host tells the token kernel; mirrored by families/token.rs.

// Values of Phase::kind. A token's phases: of each layer QKV, ATTENTION, OUT, GATE_UP, DOWN; then LOGITS.
constexpr u32 QKV = 0, ATTENTION = 1, OUT = 2, GATE_UP = 3, DOWN = 4, LOGITS = 5;

// What the copy engine knows of a matrix; the host encodes it.
struct __align__(64) TensorMap {
    u64 words[16];
};

struct Phase {
    // Rows as ProductArgs has them (GATE_UP: all gates, then all ups), in boxes of a fill; null for ATTENTION.
    const TensorMap* weights;
    // QKV, GATE_UP and LOGITS: of the norm in front, [columns].
    const f32* norm;
    // QKV: one for each row of the weights, or null.
    const f32* bias;
    // QKV and ATTENTION: the layer's cache.
    C* cache;
    S* scales;
    // Its vectors.
    const TensorMap* cache_map;
    // A multiple of 64; none for ATTENTION.
    u32 columns;
    // Outputs, a multiple of 8: QKV counts pairs of dimensions.
    u32 features;
    u32 kind;
    // Row of TokenArgs::ranges.
    u32 range;
    // What sums of OUT and DOWN are multiplied by.
    f32 alpha;
    u32 padding;
};

// A block's share of a phase: tiles of eight outputs. For ATTENTION, `first` is the block's rank among those that take spans.
struct TileRange {
    u32 first;
    u32 count;
};

// The same in shared memory.
struct Share {
    u32 first;
    u32 count;
    // Fills of a strip, and about 2^16 / pairs, which divides small numbers by them.
    u32 pairs;
    u32 inverse;
};

struct TokenArgs {
    BatchView batch;
    // [phase_count].
    const Phase* phases;
    // [rows][blocks].
    const TileRange* ranges;
    // [vocabulary][embedding_stride].
    const A* embedding;
    // [set][context][DIM / 2] each.
    const f32* cos;
    const f32* sin;
    f32* logits;
    // The best rank key of each block's logits.
    u64* bests;
    // The epoch of the next token's first layer.
    u32* epoch;
    // Exchange buffers; token_exchange.cuh says what a word is. From DOWN to QKV and LOGITS, and the residual of OUT.
    u64* hidden;
    // From OUT to GATE_UP, and the residual of DOWN.
    u64* middle;
    // From QKV to ATTENTION, heads of queries, keys and values.
    u64* projected;
    // From ATTENTION to OUT.
    u64* attended;
    // From GATE_UP to DOWN.
    u64* gated;
    // Within ATTENTION: [query head][max_sections * (DIM + 2)], in the order of token_attention.cuh.
    u64* records;
    u32 phase_count;
    u32 layers;
    u32 width;
    u32 embedding_stride;
    u32 query_heads;
    u32 key_heads;
    // Positions of cos and sin.
    u32 context;
    u32 page_shift;
    // Of the cache, as in CacheLayer.
    u32 cache_stride;
    u32 window;
    u32 max_sections;
    // Bytes of shared memory for what a phase needs: activations, sums, or attention's.
    u32 work_bytes;
    f32 eps;
    // Of attention's scores.
    f32 scale;
};
