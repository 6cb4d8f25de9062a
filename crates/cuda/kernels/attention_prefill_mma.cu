// Attention of tiles of query rows on the tensor cores, in the arithmetic of attention_mma.cuh: one block for each tile
// and key head.
//
// Spans pass through shared memory, the next one while one is computed.
//
// Aliases: those of attention_tile.cuh.

// That a multiprocessor is to hold.
constexpr int BLOCKS = (PANELS > 1 ? 256 : 384) / THREADS;

// Starts copying the rows' queries; rows that do not exist are zeros.
__device__ __forceinline__ void start_queries(const AttentionArgs& args, Shared& shared, const Work& work) {
    for (u32 i = threadIdx.x; i < ROWS * CHUNKS; i += THREADS) {
        u32 row = i / CHUNKS, chunk = i % CHUNKS, token = row / args.group;
        u32 head = work.kv_head * args.group + row - token * args.group;
        bool copied = token < work.tokens && chunk * CHUNK < DIM;
        const A* from = args.query + u64(work.first_row + token) * args.query_stride + head * DIM + chunk * CHUNK;
        copy_async_or_zero(shared.query + place<ROWS>(row, chunk), copied ? from : args.query, copied);
    }
}

// Whether any value of the staged span is a NaN or infinite.
__device__ __forceinline__ bool any_not_finite(const uint4* values) {
    bool found = false;
    for (u32 i = threadIdx.x; i < SPAN * CHUNKS; i += THREADS) {
        found = found || not_finite(values[place(i / CHUNKS, i % CHUNKS)]);
    }
    return __syncthreads_or(found);
}

// One span for all rows, given its scores; an edge where some do not see all of it. Outputs are multiplied while the matrix units
// are at work.
__device__ __forceinline__ void compute_span(
    const AttentionArgs& args, Shared& shared, const Work& work, u32 span, Slot slot, bool edge, Columns& c, Rows& rows,
    Columns (&out)[PANELS]
) {
    Pair undo{{1.0f, 1.0f}};
    Pair largest = exponents_of_span(args, work, span, edge, rows, shared.key_scale[slot.parity], c);
    Pair sum = weights_of_span(args, work, span, edge, rows, shared.value_scale[slot.parity], c, undo);
    Pair by;
    join_span(args, work, span, edge, largest, sum, rows, out, by);
    Weights weights;
    split_weights(c, weights);
    // Two panels are on their way together; more leave no registers for it.
    constexpr bool TOGETHER = WARPGROUPS && PANELS == 2;
    Columns part[TOGETHER ? 2 : 1];
#pragma unroll
    for (int panel = 0; panel < PANELS; ++panel) {
        const uint4* values = shared.values[slot.stage] + panel * SPAN * PANEL_CHUNKS;
        Columns& mine = part[TOGETHER ? panel : 0];
        if (!TOGETHER || panel == 0) start_outputs(mine, weights, values);
        if (TOGETHER && panel == 0) start_outputs(part[TOGETHER], weights, values + SPAN * PANEL_CHUNKS);
        if (TOGETHER && panel == 0) {
            finish_products<1>(mine);
        } else {
            finish_products<0>(mine);
        }
        if (NORMALISED) multiply_rows(mine, undo.row[0], undo.row[1]);
        add_outputs(out[panel], mine, by);
    }
}

// Starts what the first span needs.
__device__ __forceinline__ void start_tile(
    const AttentionArgs& args, Shared& shared, const Work& work, const u32* block_table, Rows& rows
) {
    u32 first_span = seen_by_any(args, work).first / SPAN;
    store_vector(args, shared, work, find_page(args, work, block_table, first_span), first_span, 0);
    store_vector(args, shared, work, find_page(args, work, block_table, first_span + 1), first_span + 1, 1);
    start_queries(args, shared, work);
    copy_async_commit();
    start_rows(args, work, shared.before, rows);
    __syncthreads();
}

// Whether all rows could be computed: not where some see a NaN or infinity that others must not see.
__device__ __forceinline__ bool compute_tile(
    const AttentionArgs& args, Shared& shared, const Work& work, const u32* block_table
) {
    Visible any = seen_by_any(args, work), every = seen_by_every(args, work);
    u32 first_span = any.first / SPAN, spans = div_ceil(any.end, SPAN);
    // The same for all lanes, which the compiler is told in this way.
    u32 warp = __shfl_sync(FULL_WARP, threadIdx.x / 32, 0);
    Rows rows;
    start_tile(args, shared, work, block_table, rows);
    Columns out[PANELS];
#pragma unroll
    for (int i = 0; i < PANELS; ++i) clear(out[i]);
    Scales scales;
    start_span(args.cache, shared, Slot{0, 0}, scales);
    finish_span(shared, Slot{0, 0}, scales);

    for (u32 span = first_span; span < spans; ++span) {
        u32 parity = (span - first_span) % 2;
        Slot slot{STAGES == 2 ? parity : 0, parity}, next{STAGES == 2 ? parity ^ 1 : 0, parity ^ 1};
        // The span has come, and the one before has been used.
        publish();
        __syncthreads();
        bool more = span + 1 < spans, edge = every.first > span * SPAN || every.end < (span + 1) * SPAN;
        if (edge && work.tokens > 1 && any_not_finite(shared.values[slot.stage])) return false;
        Columns scores;
        start_scores(scores, warp, shared.query, shared.keys[slot.stage]);
        if (STAGES == 2 && more) start_span(args.cache, shared, next, scales);
        u32 page = find_page(args, work, block_table, span + 2);
        finish_products<0>(scores);
        compute_span(args, shared, work, span, slot, edge, scores, rows, out);
        if (!more || (span + 1) % SECTION == 0) close_section(args, work, span / SECTION, shared.before, rows, out);
        if (STAGES == 1 && more) {
            __syncthreads();
            start_span(args.cache, shared, next, scales);
        }
        if (more) finish_span(shared, next, scales);
        store_vector(args, shared, work, page, span + 2, parity);
    }
    store_rows(args, work, shared.before, rows);
    return true;
}

extern "C" __global__ __launch_bounds__(THREADS, BLOCKS) void attention_prefill_mma(const AttentionArgs args) {
    extern __shared__ __align__(1024) uint4 memory[];
    Shared& shared = *reinterpret_cast<Shared*>(memory);
    launch_dependents();
    wait_for_inputs();
    // Heads of a tile are neighbours, so that tiles start in the order of the list.
    u32 kv_head = blockIdx.x % args.cache.heads;
    const Tile tile = args.tiles[blockIdx.x / args.cache.heads];
    const Sequence sequence = args.batch.sequences[args.batch.row_sequence[tile.first_row]];
    const u32* block_table = args.batch.block_tables + sequence.block_table;
    u32 position = args.batch.positions[tile.first_row];
    // All tokens at once; one after another where they cannot be.
    u32 step = tile.tokens;
    for (u32 token = 0; token < tile.tokens;) {
        u32 tokens = minimum(step, tile.tokens - token);
        const Work work{kv_head, tile.first_row + token, position + token, tokens};
        if (compute_tile(args, shared, work, block_table)) {
            token += step;
        } else {
            step = 1;
        }
        // Nothing is on its way, and nothing is used any more.
        copy_async_wait<0>();
        __syncthreads();
    }
}
