// Attention of tiles of query rows on the tensor cores, in the arithmetic of attention_mma.cuh: one block for each (tile,
// key head). The rows of a tile are consecutive tokens of one sequence, each with all query heads of the group: row r is
// token r / group, head r % group.
//
// Spans pass through shared memory, the next one while one is computed. What sections before the current one left of a
// row waits there too: it is needed once in SECTION spans.
//
// Aliases: those of attention_tile.cuh.

// That a multiprocessor is to hold.
constexpr int BLOCKS = (PANELS > 1 ? 256 : WARPGROUPS ? 512 : 384) / THREADS;

// -------------------------------------------------------------------------------------------------------- staging

// What a block works on: the key head, and tokens, of which the first one's row in the batch and its position are given.
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
    if (THREADS % PACKS == 0 && APART % 8 == 0) return place(my_position(0), my_pack(0)) + i * APART * PANEL_CHUNKS;
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

struct Packs {
    Pack<C> pack[MY_PACKS];
};

// Loads packs that lie `offset` values after those of the keys.
__device__ __forceinline__ void load_packs(const CacheLayer& cache, const u32* vector, u64 offset, Packs& packs) {
#pragma unroll
    for (int i = 0; i < MY_PACKS; ++i) {
        u32 number = is_mine(i) ? vector[my_position(i)] : UNSEEN;
        packs.pack[i].raw.bits = uint4{0, 0, 0, 0};
        if (number != UNSEEN) packs.pack[i] = load_pack(pack_address(cache, number, my_pack(i)) + offset);
    }
}

__device__ __forceinline__ void store_packs(const Packs& packs, uint4* to) {
#pragma unroll
    for (int i = 0; i < MY_PACKS; ++i) {
        if (!is_mine(i)) continue;
        float x[PACK_VALUES];
        decode(packs.pack[i], x);
#pragma unroll
        for (int half = 0; half < PACK_VALUES / CHUNK; ++half) {
            // What pads a vector in the cache may be anything.
            bool within = (my_pack(i) * 2 + half) * CHUNK < DIM;
            float y[CHUNK];
#pragma unroll
            for (int d = 0; d < CHUNK; ++d) y[d] = within ? x[half * CHUNK + d] : 0.0f;
            to[place(my_position(i), my_pack(i) * 2 + half)] = encode<A>(y).raw.bits;
        }
    }
}

// A span on its way to shared memory.
struct Incoming {
    Packs keys;
    Packs values;
    float key_scale;
    float value_scale;
};

__device__ __forceinline__ void start_span(
    const CacheLayer& cache, Shared& shared, Slot slot, Incoming& incoming
) {
    const u32* vector = shared.vector[slot.parity];
    if constexpr (CONVERTED) {
        load_packs(cache, vector, 0, incoming.keys);
        load_packs(cache, vector, values_from_keys(cache), incoming.values);
    } else {
#pragma unroll
        for (int i = 0; i < MY_PACKS; ++i) {
            if (!is_mine(i)) continue;
            u32 number = vector[my_position(i)], to = my_place(i);
            bool copied = number != UNSEEN && my_pack(i) * CHUNK < DIM;
            const C* from = pack_address(cache, copied ? number : 0, my_pack(i));
            copy_async_or_zero(shared.keys[slot.stage] + to, from, copied);
            copy_async_or_zero(shared.values[slot.stage] + to, from + values_from_keys(cache), copied);
        }
        copy_async_commit();
    }
    if (SCALED && threadIdx.x < SPAN) {
        u32 number = vector[threadIdx.x];
        bool seen = number != UNSEEN;
        incoming.key_scale = seen ? to_f32(cache.scales[number]) : 0.0f;
        incoming.value_scale = seen ? to_f32(cache.scales[number + value_offset(cache)]) : 0.0f;
    }
}

// Makes this thread's part of the span seen after the next barrier.
__device__ __forceinline__ void publish() {
    copy_async_wait<0>();
#if WARPGROUPS
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}

__device__ __forceinline__ void finish_span(Shared& shared, Slot slot, const Incoming& incoming) {
    if constexpr (CONVERTED) {
        store_packs(incoming.keys, shared.keys[slot.stage]);
        store_packs(incoming.values, shared.values[slot.stage]);
    }
    if (SCALED && threadIdx.x < SPAN) {
        shared.key_scale[slot.parity][threadIdx.x] = incoming.key_scale;
        shared.value_scale[slot.parity][threadIdx.x] = incoming.value_scale;
    }
}

// ------------------------------------------------------------------------------------------------------------ rows

// The two rows of a lane: their tokens, and what they have seen of the current section. Rows that the tile does not have
// compute like others, as token 0, and are not stored.
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

// Scores of a row become weights.
__device__ __forceinline__ Softmax weigh(Columns& c, int half, float base) {
    float largest = -infinity(), sum = 0.0f;
#pragma unroll
    for (int i = 0; i < 2 * COLUMNS; ++i) largest = larger(largest, at(c, half, i));
    largest = row_largest(largest) * base;
    float shift = finite_or_zero(largest);
#pragma unroll
    for (int i = 0; i < 2 * COLUMNS; ++i) {
        at(c, half, i) = weight_of(at(c, half, i), base, shift);
        sum = sum + at(c, half, i);
    }
    return Softmax{largest, row_sum(sum)};
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

// Multiplies the weights of a row by a power of two; returns what undoes it.
__device__ __forceinline__ float normalise(Columns& c, int half) {
    float largest = 0.0f;
#pragma unroll
    for (int i = 0; i < 2 * COLUMNS; ++i) largest = larger(largest, at(c, half, i));
    Normal normal = normal_of(row_largest(largest));
#pragma unroll
    for (int i = 0; i < 2 * COLUMNS; ++i) at(c, half, i) = at(c, half, i) * normal.of_weights;
    return normal.of_outputs;
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

// What is done with a span's outputs of each of a lane's rows.
struct Joining {
    Factors by[2];
    float of_outputs[2];
};

// Multiplies the span's values and joins the outputs to the section's.
__device__ __forceinline__ void add_values(
    const Weights& weights, const uint4* values, const Joining& joining, Columns (&out)[PANELS]
) {
#pragma unroll
    for (int panel = 0; panel < PANELS; ++panel) {
        Columns c;
        multiply_values(c, weights, values + panel * SPAN * PANEL_CHUNKS);
#pragma unroll
        for (int i = 0; i < 4 * COLUMNS; ++i) {
            float part = c.part[i / 4][i % 4];
            if (SCALED) part = part * joining.of_outputs[i % 4 / 2];
            float& to = out[panel].part[i / 4][i % 4];
            to = merge_output(to, part, joining.by[i % 4 / 2]);
        }
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

// One span for all rows; an edge where some do not see all of it.
__device__ __forceinline__ void compute_span(
    const AttentionArgs& args, Shared& shared, const Work& work, u32 span, Slot slot, bool edge, Rows& rows,
    Columns (&out)[PANELS]
) {
    Columns c;
    multiply_keys(c, shared.query, shared.keys[slot.stage]);
    if (SCALED) multiply_by(c, shared.key_scale[slot.parity]);
    if (edge) hide(c, args, work, span, rows, -infinity());
    Joining joining;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        Softmax part = weigh(c, half, base_2(args.scale)), section = rows.section[half];
        joining.by[half] = join(section, part);
        joining.of_outputs[half] = 1.0f;
        if (!edge || sees_of_span(args, work, rows.token[half], span)) {
            rows.section[half] = section;
        } else {
            // These leave what the row has as it is, to the signs of zeros.
            joining.by[half] = Factors{1.0f, -0.0f};
        }
    }
    if (SCALED) {
        multiply_by(c, shared.value_scale[slot.parity]);
        if (edge) hide(c, args, work, span, rows, 0.0f);
#pragma unroll
        for (int half = 0; half < 2; ++half) joining.of_outputs[half] = normalise(c, half);
    }
    Weights weights;
    split_weights(c, weights);
    add_values(weights, shared.values[slot.stage], joining, out);
}

// Joins a section to those before it.
__device__ __forceinline__ void close_section(
    const AttentionArgs& args, Shared& shared, const Work& work, u32 section, Rows& rows, Columns (&out)[PANELS]
) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        constexpr u32 POSITIONS = SECTION * SPAN;
        Visible visible = seen_by(args, work, rows.token[half]);
        bool taken = visible.first < (section + 1) * POSITIONS && visible.end > section * POSITIONS;
        if (taken) {
            Factors by = join(shared.before_softmax[half][threadIdx.x], rows.section[half]);
#pragma unroll
            for (int i = 0; i < PANELS * COLUMNS * 2; ++i) {
                int panel = i / (2 * COLUMNS), column = i / 2 % COLUMNS, which = 2 * half + i % 2;
                float& before = shared.before[panel][column][which][threadIdx.x];
                before = merge_output(before, out[panel].part[column][which], by);
            }
        }
        rows.section[half] = nothing_seen();
    }
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
        float sum = shared.before_softmax[half][threadIdx.x].sum;
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
        rows.section[half] = shared.before_softmax[half][threadIdx.x] = nothing_seen();
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
    Rows rows;
    start_tile(args, shared, work, rows);
    Columns out[PANELS];
#pragma unroll
    for (int i = 0; i < PANELS; ++i) clear(out[i]);
    Incoming incoming;
    start_span(args.cache, shared, Slot{0, 0}, incoming);
    finish_span(shared, Slot{0, 0}, incoming);

    for (u32 span = first_span; span < spans; ++span) {
        u32 parity = (span - first_span) % 2;
        Slot slot{STAGES == 2 ? parity : 0, parity}, next{STAGES == 2 ? parity ^ 1 : 0, parity ^ 1};
        // The span has come, and the one before has been used.
        publish();
        __syncthreads();
        bool more = span + 1 < spans;
        if (STAGES == 2 && more) start_span(args.cache, shared, next, incoming);
        u32 page = find_page(args, work, span + 2);
        bool edge = every.first > span * SPAN || every.end < (span + 1) * SPAN;
        if (edge && work.tokens > 1 && any_not_finite(shared.values[slot.stage])) return false;
        compute_span(args, shared, work, span, slot, edge, rows, out);
        if (!more || (span + 1) % SECTION == 0) close_section(args, shared, work, span / SECTION, rows, out);
        if (STAGES == 1 && more) {
            __syncthreads();
            start_span(args.cache, shared, next, incoming);
        }
        if (more) finish_span(shared, next, incoming);
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
