// Attention of tiles of query rows on the tensor cores, in the arithmetic of attention_mma.cuh: one block for each tile
// and key head. The rows of a tile are consecutive tokens of one sequence, each with all query heads of the group: row
// r is token r / group, head r % group.
//
// Spans pass through shared memory, the next one while one is computed. What sections before the current one left of a
// row waits there too: it is needed once in SECTION spans.
//
// Aliases: those of attention_tile.cuh.

// That a multiprocessor is to hold.
constexpr int BLOCKS = (PANELS > 1 ? 256 : WARPGROUPS ? 512 : 384) / THREADS;

// The two rows of a lane: their tokens, and what they have seen of the current section. Rows that the tile does not
// have compute like others, as token 0, and are not stored.
struct Rows {
    u32 token[2];
    Softmax section[2];
};

__device__ __forceinline__ u32 lane_row(int half) { return threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4 + 8 * half; }

__device__ __forceinline__ bool exists(const AttentionArgs& args, const Work& work, int half) {
    return lane_row(half) < work.tokens * args.group;
}

// Values of a row's head within a row of queries or outputs.
__device__ __forceinline__ u32 head_offset(
    const AttentionArgs& args, const Work& work, const Rows& rows, int half
) {
    return (work.kv_head * args.group + lane_row(half) - rows.token[half] * args.group) * DIM;
}

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

// What a lane has of one row: `half` is 0 for row g, 1 for row g + 8; column i is position i / 2 * 8 + 2 t + i % 2.
__device__ __forceinline__ float& at(Columns& c, int half, int i) { return c.part[i / 2][2 * half + i % 2]; }

// Gives what the rows do not see of a span another value.
__device__ __forceinline__ void hide(
    Columns& c, const AttentionArgs& args, const Work& work, u32 span, const Rows& rows, float value
) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        Visible seen = within_span(seen_by(args, work, rows.token[half]), span);
        u32 first = threadIdx.x % 4 * 2 - seen.first, count = seen.end - seen.first;
#pragma unroll
        for (int i = 0; i < 2 * COLUMNS; ++i) {
            at(c, half, i) = first + (i / 2 * 8 + i % 2) < count ? at(c, half, i) : value;
        }
    }
}

// One number for each of a lane's rows.
struct Pair {
    float row[2];
};

// The largest number of each row.
__device__ __forceinline__ Pair largest_of(Columns& c) {
    // Four chains a row, so that they take turns.
    float most[2][4];
#pragma unroll
    for (int i = 0; i < 4 * COLUMNS; ++i) {
        int half = i % 2, chain = i / 2 % 4;
        float x = at(c, half, i / 2);
        most[half][chain] = i / 2 < 4 ? x : larger(most[half][chain], x);
    }
    Pair largest;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        float one = larger(most[half][0], most[half][1]), other = larger(most[half][2], most[half][3]);
        largest.row[half] = row_largest(larger(one, other));
    }
    return largest;
}

// Scores become weights, of which this lane's are added up for each row.
__device__ __forceinline__ Pair weigh(Columns& c, float base, const Pair& largest) {
    Pair sum{{0.0f, 0.0f}};
#pragma unroll
    for (int i = 0; i < 4 * COLUMNS; ++i) {
        int half = i % 2;
        float& x = at(c, half, i / 2);
        x = weight_of(x, base, finite_or_zero(largest.row[half]));
        sum.row[half] = sum.row[half] + x;
    }
    return sum;
}

// Multiplies all columns by scales of their positions.
__device__ __forceinline__ void multiply_by(Columns& c, const float* scale) {
#pragma unroll
    for (int i = 0; i < 2 * COLUMNS; ++i) {
        float by = scale[i / 2 * 8 + threadIdx.x % 4 * 2 + i % 2];
        at(c, 0, i) = at(c, 0, i) * by;
        at(c, 1, i) = at(c, 1, i) * by;
    }
}

// Multiplies the weights of each row by a power of two; returns what undoes it.
__device__ __forceinline__ Pair normalise(Columns& c) {
    Pair largest = largest_of(c), undo;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        Normal normal = normal_of(largest.row[half]);
#pragma unroll
        for (int i = 0; i < 2 * COLUMNS; ++i) at(c, half, i) = at(c, half, i) * normal.of_weights;
        undo.row[half] = normal.of_outputs;
    }
    return undo;
}

__device__ __forceinline__ void multiply_rows(Columns& c, float first, float second) {
#pragma unroll
    for (int i = 0; i < 2 * COLUMNS; ++i) {
        at(c, 0, i) = at(c, 0, i) * first;
        at(c, 1, i) = at(c, 1, i) * second;
    }
}

__device__ __forceinline__ void split_weights(const Columns& c, Weights& weights) {
#pragma unroll
    for (int j = 0; j < COLUMNS; ++j) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            int part = j % 2 * 2 + half;
            split(
                c.part[j][2 * half], c.part[j][2 * half + 1],
                weights.high[j / 2].part[part], weights.low[j / 2].part[part]
            );
        }
    }
}

// Joins the span's softmax to the section's where a row sees some of the span; returns the factors for the outputs.
__device__ __forceinline__ void join_rows(
    const bool (&taken)[2], const Pair& largest, const Pair& sum, Rows& rows, Factors (&by)[2]
) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        Softmax& section = rows.section[half];
        Softmax joined = section;
        by[half] = join(joined, Softmax{largest.row[half], row_sum(sum.row[half])});
        section.largest = taken[half] ? joined.largest : section.largest;
        section.sum = taken[half] ? joined.sum : section.sum;
        // These leave what the row has as it is, to the signs of zeros.
        by[half].before = taken[half] ? by[half].before : 1.0f;
        by[half].part = taken[half] ? by[half].part : -0.0f;
    }
}

__device__ __forceinline__ bool not_finite(u32 word) {
    // Two numbers a word; the exponent is what infinity has.
    const u32 exponent = from_f32<A>(infinity()).bits;
    return (word & exponent) == exponent || (word >> 16 & exponent) == exponent;
}

// Whether any value of the staged span is a NaN or infinite.
__device__ __forceinline__ bool any_not_finite(const uint4* values) {
    bool found = false;
    for (u32 i = threadIdx.x; i < SPAN * CHUNKS; i += THREADS) {
        uint4 chunk = values[place(i / CHUNKS, i % CHUNKS)];
        found = found || not_finite(chunk.x) || not_finite(chunk.y) || not_finite(chunk.z) || not_finite(chunk.w);
    }
    return __syncthreads_or(found);
}

// One span for all rows, given its scores; an edge where some do not see all of it. The outputs are merged as
// merge_output() does, its first product while the matrix units are at work.
__device__ __forceinline__ void compute_span(
    const AttentionArgs& args, Shared& shared, const Work& work, u32 span, Slot slot, bool edge, Columns& c, Rows& rows,
    Columns (&out)[PANELS]
) {
    if (SCALED) multiply_by(c, shared.key_scale[slot.parity]);
    if (edge) hide(c, args, work, span, rows, -infinity());
    Pair largest = largest_of(c), undo{{1.0f, 1.0f}};
    float base = base_2(args.scale);
    largest = Pair{{largest.row[0] * base, largest.row[1] * base}};
    Pair sum = weigh(c, base, largest);
    if (SCALED) {
        multiply_by(c, shared.value_scale[slot.parity]);
        if (edge) hide(c, args, work, span, rows, 0.0f);
        undo = normalise(c);
    }
    bool taken[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) taken[half] = !edge || sees_of_span(args, work, rows.token[half], span);
    Factors by[2];
    join_rows(taken, largest, sum, rows, by);
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
        multiply_rows(out[panel], by[0].before, by[1].before);
        if (TOGETHER && panel == 0) {
            finish_products<1>(mine);
        } else {
            finish_products<0>(mine);
        }
        if (SCALED) multiply_rows(mine, undo.row[0], undo.row[1]);
#pragma unroll
        for (int i = 0; i < 4 * COLUMNS; ++i) {
            float& to = out[panel].part[i / 4][i % 4];
            to = mul_add(mine.part[i / 4][i % 4], by[i % 4 / 2].part, to);
        }
    }
}

// Joins a section to those before it.
__device__ __forceinline__ void close_section(
    const AttentionArgs& args, Shared& shared, const Work& work, u32 section, Rows& rows, Columns (&out)[PANELS]
) {
    Softmax before[2] = {shared.before_softmax[lane_row(0)], shared.before_softmax[lane_row(1)]};
    // The four lanes of a row have read what all of them write.
    __syncwarp();
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        constexpr u32 POSITIONS = SECTION * SPAN;
        Visible visible = seen_by(args, work, rows.token[half]);
        bool taken = visible.first < (section + 1) * POSITIONS && visible.end > section * POSITIONS;
        if (taken) {
            Factors by = join(before[half], rows.section[half]);
            shared.before_softmax[lane_row(half)] = before[half];
#pragma unroll
            for (int i = 0; i < PANELS * COLUMNS * 2; ++i) {
                int panel = i / (2 * COLUMNS), column = i / 2 % COLUMNS, which = 2 * half + i % 2;
                float& to = shared.before[panel][column][which][threadIdx.x];
                to = merge_output(to, out[panel].part[column][which], by);
            }
        }
        rows.section[half] = nothing_seen();
    }
    // All four have written it before any reads it again.
    __syncwarp();
#pragma unroll
    for (int panel = 0; panel < PANELS; ++panel) clear(out[panel]);
}

__device__ __forceinline__ void store_rows(
    const AttentionArgs& args, const Shared& shared, const Work& work, const Rows& rows
) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        if (!exists(args, work, half)) continue;
        A* to = args.out + u64(work.first_row + rows.token[half]) * args.out_stride;
        to += head_offset(args, work, rows, half) + threadIdx.x % 4 * 2;
        float sum = shared.before_softmax[lane_row(half)].sum;
#pragma unroll
        for (int i = 0; i < DIM / 8; ++i) {
            const auto& part = shared.before[i / COLUMNS][i % COLUMNS];
            float two[2] = {
                divide(part[2 * half][threadIdx.x], sum), divide(part[2 * half + 1][threadIdx.x], sum)
            };
            store_few(to + i * 8, encode<A>(two));
        }
    }
}

// Starts what the first span needs.
__device__ __forceinline__ void start_tile(const AttentionArgs& args, Shared& shared, const Work& work, Rows& rows) {
    u32 first_span = seen_by_any(args, work).first / SPAN;
    store_vector(args, shared, work, find_page(args, work, first_span), first_span, 0);
    store_vector(args, shared, work, find_page(args, work, first_span + 1), first_span + 1, 1);
    start_queries(args, shared, work);
    copy_async_commit();
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        rows.token[half] = exists(args, work, half) ? lane_row(half) / args.group : 0;
        rows.section[half] = shared.before_softmax[lane_row(half)] = nothing_seen();
    }
#pragma unroll
    for (int i = 0; i < PANELS * 4 * COLUMNS; ++i) {
        shared.before[i / (4 * COLUMNS)][i / 4 % COLUMNS][i % 4][threadIdx.x] = 0.0f;
    }
    __syncthreads();
}

// Whether all rows could be computed: not where some see a NaN or infinity that others must not see.
__device__ __forceinline__ bool compute_tile(const AttentionArgs& args, Shared& shared, const Work& work) {
    Visible any = seen_by_any(args, work), every = seen_by_every(args, work);
    u32 first_span = any.first / SPAN, spans = div_ceil(any.end, SPAN);
    // The same for all lanes, which the compiler is told in this way.
    u32 warp = __shfl_sync(FULL_WARP, threadIdx.x / 32, 0);
    Rows rows;
    start_tile(args, shared, work, rows);
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
        u32 page = find_page(args, work, span + 2);
        finish_products<0>(scores);
        compute_span(args, shared, work, span, slot, edge, scores, rows, out);
        if (!more || (span + 1) % SECTION == 0) close_section(args, shared, work, span / SECTION, rows, out);
        if (STAGES == 1 && more) {
            __syncthreads();
            start_span(args.cache, shared, next, scales);
        }
        if (more) finish_span(shared, next, scales);
        store_vector(args, shared, work, page, span + 2, parity);
    }
    store_rows(args, shared, work, rows);
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
        const Work work{block_table, kv_head, tile.first_row + token, position + token, tokens};
        if (compute_tile(args, shared, work)) {
            token += step;
        } else {
            step = 1;
        }
        // Nothing is on its way, and nothing is used any more.
        copy_async_wait<0>();
        __syncthreads();
    }
}
