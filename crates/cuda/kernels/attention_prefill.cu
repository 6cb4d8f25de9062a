// Attention of tiles of query rows: one block for each (tile, key head). The rows of a tile are consecutive tokens of one
// sequence, each with all query heads of the group: row r is token r / group, head r % group.
//
// The arithmetic is that of attention_decode.cu, to the bit; see there. All products are f32 on the CUDA cores, in
// register tiles: 16 threads share a row, each with every sixteenth position (scores) or four neighbouring dimensions of
// every 64 (outputs).
//
// Aliases: those of cache.cuh and DIM, values of a head, a multiple of 8.

constexpr int ROWS = 64;
constexpr int THREADS = DIM <= 64 ? 128 : 256;
constexpr int ACROSS = 16;
constexpr int DOWN = THREADS / ACROSS;
constexpr int MY_ROWS = ROWS / DOWN;
constexpr int MY_POSITIONS = SPAN / ACROSS;
constexpr int MY_COLUMNS = (DIM + 63) / 64;
// Floats of a row in shared memory: an odd number of packs keeps rows in different banks.
constexpr int WIDE = 64 * MY_COLUMNS + 4;
constexpr int NARROW = SPAN + 4;

constexpr int PER_PACK = Pack<C>::VALUES;
constexpr int PACKS = (DIM + PER_PACK - 1) / PER_PACK;
constexpr int MY_PACKS = (SPAN * PACKS + THREADS - 1) / THREADS;

static_assert(PACKS * PER_PACK <= WIDE, "a decoded vector fits its row");

// Dynamic shared memory.
struct Shared {
    float query[ROWS][WIDE];
    // Keys, then values, of a span.
    float vectors[SPAN][WIDE];
    float weights[ROWS][NARROW];
    Visible visible[ROWS];
    u32 vector[SPAN];
    float key_scale[SPAN];
    float value_scale[SPAN];
};

__device__ __forceinline__ u32 across() { return threadIdx.x % ACROSS; }
__device__ __forceinline__ u32 row_of(int i) { return threadIdx.x / ACROSS + DOWN * i; }
__device__ __forceinline__ float4 four(const float* address) { return *reinterpret_cast<const float4*>(address); }

// Loads this thread's share of the span's vectors; those of positions that no row sees are zeros.
__device__ __forceinline__ void load_vectors(
    const CacheLayer& cache, const Shared& shared, u32 offset, Visible seen, Pack<C> (&packs)[MY_PACKS]
) {
#pragma unroll
    for (int i = 0; i < MY_PACKS; ++i) {
        u32 index = threadIdx.x + i * THREADS, position = index / PACKS;
        packs[i].raw.bits = uint4{0, 0, 0, 0};
        if (position >= seen.first && position < seen.end) {
            u64 vector = shared.vector[position] + offset;
            packs[i] = load_pack(cache.values + vector * cache.stride + index % PACKS * PER_PACK);
        }
    }
}

__device__ __forceinline__ void store_vectors(Shared& shared, const Pack<C> (&packs)[MY_PACKS]) {
#pragma unroll
    for (int i = 0; i < MY_PACKS; ++i) {
        u32 index = threadIdx.x + i * THREADS, position = index / PACKS;
        float x[PER_PACK];
        decode(packs[i], x);
        if (position >= SPAN) continue;
        float4* to = reinterpret_cast<float4*>(shared.vectors[position] + index % PACKS * PER_PACK);
#pragma unroll
        for (int d = 0; d < PER_PACK; d += 4) to[d / 4] = float4{x[d], x[d + 1], x[d + 2], x[d + 3]};
    }
}

struct Scores {
    float value[MY_ROWS][MY_POSITIONS];
};

__device__ __forceinline__ void compute_scores(const Shared& shared, Scores& scores) {
#pragma unroll
    for (int i = 0; i < MY_ROWS; ++i) {
#pragma unroll
        for (int j = 0; j < MY_POSITIONS; ++j) scores.value[i][j] = 0.0f;
    }
#pragma unroll 2
    for (int d = 0; d < DIM; d += 4) {
        float4 key[MY_POSITIONS];
#pragma unroll
        for (int j = 0; j < MY_POSITIONS; ++j) key[j] = four(shared.vectors[across() + ACROSS * j] + d);
#pragma unroll
        for (int i = 0; i < MY_ROWS; ++i) {
            float4 query = four(shared.query[row_of(i)] + d);
#pragma unroll
            for (int j = 0; j < MY_POSITIONS; ++j) {
                float& score = scores.value[i][j];
                score = mul_add(query.x, key[j].x, score);
                score = mul_add(query.y, key[j].y, score);
                score = mul_add(query.z, key[j].z, score);
                score = mul_add(query.w, key[j].w, score);
            }
        }
    }
}

// Softmax of each row over the span: weights to shared memory, largest scores and sums stay here.
__device__ __forceinline__ void compute_weights(
    Shared& shared, const Scores& scores, float scale, u32 span, Softmax (&part)[MY_ROWS]
) {
#pragma unroll
    for (int i = 0; i < MY_ROWS; ++i) {
        Visible seen = within_span(shared.visible[row_of(i)], span);
        float score[MY_POSITIONS], largest = -infinity(), sum = 0.0f;
#pragma unroll
        for (int j = 0; j < MY_POSITIONS; ++j) {
            u32 position = across() + ACROSS * j;
            bool visible = position >= seen.first && position < seen.end;
            float scaled = scores.value[i][j] * scale;
            if (SCALED) scaled = scaled * shared.key_scale[position];
            score[j] = visible ? scaled : -infinity();
            largest = larger(largest, score[j]);
        }
        largest = warp_max<ACROSS>(largest);
        float shift = finite_or_zero(largest);
#pragma unroll
        for (int j = 0; j < MY_POSITIONS; ++j) {
            u32 position = across() + ACROSS * j;
            bool visible = position >= seen.first && position < seen.end;
            float weight = visible ? exponential_below_one(score[j] - shift) : 0.0f;
            sum = sum + weight;
            if (SCALED && visible) weight = weight * shared.value_scale[position];
            shared.weights[row_of(i)][position] = weight;
        }
        part[i] = Softmax{largest, warp_sum<ACROSS>(sum)};
    }
}

struct Outputs {
    float value[MY_ROWS][MY_COLUMNS][4];
};

__device__ __forceinline__ void clear(Outputs& out) {
#pragma unroll
    for (int i = 0; i < MY_ROWS; ++i) {
#pragma unroll
        for (int j = 0; j < MY_COLUMNS; ++j) {
#pragma unroll
            for (int d = 0; d < 4; ++d) out.value[i][j][d] = 0.0f;
        }
    }
}

__device__ __forceinline__ void add_value(float (&out)[4], float weight, float4 value) {
    out[0] = mul_add(weight, value.x, out[0]);
    out[1] = mul_add(weight, value.y, out[1]);
    out[2] = mul_add(weight, value.z, out[2]);
    out[3] = mul_add(weight, value.w, out[3]);
}

// Weights times values of a span that every row sees whole.
__device__ __forceinline__ void compute_outputs(const Shared& shared, Outputs& out) {
    for (u32 position = 0; position < SPAN; position += 4) {
        float4 weight[MY_ROWS];
#pragma unroll
        for (int i = 0; i < MY_ROWS; ++i) weight[i] = four(shared.weights[row_of(i)] + position);
#pragma unroll
        for (int j = 0; j < MY_COLUMNS; ++j) {
            const float* column = shared.vectors[position] + 4 * across() + 64 * j;
            float4 value[4];
#pragma unroll
            for (int p = 0; p < 4; ++p) value[p] = four(column + p * WIDE);
#pragma unroll
            for (int i = 0; i < MY_ROWS; ++i) {
                add_value(out.value[i][j], weight[i].x, value[0]);
                add_value(out.value[i][j], weight[i].y, value[1]);
                add_value(out.value[i][j], weight[i].z, value[2]);
                add_value(out.value[i][j], weight[i].w, value[3]);
            }
        }
    }
}

// The same where rows see different parts: what a row does not see takes no part in its chains, so that a NaN there
// stays there.
__device__ __forceinline__ void compute_masked_outputs(const Shared& shared, u32 span, Visible seen, Outputs& out) {
    Visible visible[MY_ROWS];
#pragma unroll
    for (int i = 0; i < MY_ROWS; ++i) visible[i] = within_span(shared.visible[row_of(i)], span);
    for (u32 position = seen.first; position < seen.end; ++position) {
#pragma unroll
        for (int j = 0; j < MY_COLUMNS; ++j) {
            float4 value = four(shared.vectors[position] + 4 * across() + 64 * j);
#pragma unroll
            for (int i = 0; i < MY_ROWS; ++i) {
                if (position >= visible[i].first && position < visible[i].end) {
                    add_value(out.value[i][j], shared.weights[row_of(i)][position], value);
                }
            }
        }
    }
}

// Joins the span to the spans before it.
__device__ __forceinline__ void merge_rows(
    const Shared& shared, u32 span, const Softmax (&part)[MY_ROWS], const Outputs& outputs,
    Softmax (&all)[MY_ROWS], Outputs& out
) {
#pragma unroll
    for (int i = 0; i < MY_ROWS; ++i) {
        Visible seen = within_span(shared.visible[row_of(i)], span);
        if (seen.first >= seen.end) continue;
        Factors by = merge(all[i], part[i]);
#pragma unroll
        for (int j = 0; j < MY_COLUMNS; ++j) {
#pragma unroll
            for (int d = 0; d < 4; ++d) {
                out.value[i][j][d] = merge_output(out.value[i][j][d], outputs.value[i][j][d], by);
            }
        }
    }
}

__device__ __forceinline__ void start_tile(Shared& shared, const AttentionArgs& args, Tile tile, u32 kv_head) {
    u32 rows = tile.tokens * args.group;
    if (threadIdx.x < ROWS) {
        u32 token = threadIdx.x / args.group;
        Visible visible{0, 0};
        if (threadIdx.x < rows) visible = visible_to(args.batch.positions[tile.first_row + token], args.window);
        shared.visible[threadIdx.x] = visible;
    }
    for (u32 i = threadIdx.x; i < ROWS * DIM / 4; i += THREADS) {
        u32 r = i / (DIM / 4), d = i % (DIM / 4) * 4;
        float x[4] = {0.0f, 0.0f, 0.0f, 0.0f};
        if (r < rows) {
            u32 head = kv_head * args.group + r % args.group;
            const A* row = args.query + u64(tile.first_row + r / args.group) * args.query_stride;
            decode(load_few<A, 4>(row + head * DIM + d), x);
        }
        *reinterpret_cast<float4*>(shared.query[r] + d) = float4{x[0], x[1], x[2], x[3]};
    }
}

__device__ __forceinline__ void find_vectors(
    Shared& shared, const AttentionArgs& args, const u32* block_table, u32 kv_head, u32 span, Visible seen
) {
    u32 position = threadIdx.x;
    if (position < SPAN && position >= seen.first && position < seen.end) {
        u32 key = key_vector(args.cache, block_table, kv_head, span * SPAN + position);
        shared.vector[position] = key;
        if (SCALED) {
            shared.key_scale[position] = to_f32(args.cache.scales[key]);
            shared.value_scale[position] = to_f32(args.cache.scales[key + value_offset(args.cache)]);
        }
    }
}

__device__ __forceinline__ void store_rows(
    const AttentionArgs& args, Tile tile, u32 kv_head, const Softmax (&all)[MY_ROWS], const Outputs& out
) {
#pragma unroll
    for (int i = 0; i < MY_ROWS; ++i) {
        u32 r = row_of(i);
        if (r >= tile.tokens * args.group) continue;
        u32 head = kv_head * args.group + r % args.group;
        A* row = args.out + u64(tile.first_row + r / args.group) * args.out_stride + head * DIM;
#pragma unroll
        for (int j = 0; j < MY_COLUMNS; ++j) {
            u32 dim = 4 * across() + 64 * j;
            if (dim >= DIM) continue;
            float x[4];
#pragma unroll
            for (int d = 0; d < 4; ++d) x[d] = divide(out.value[i][j][d], all[i].sum);
            store_few(row + dim, encode<A>(x));
        }
    }
}

extern "C" __global__ __launch_bounds__(THREADS, DIM <= 64 && sizeof(C) < 4 ? 3 : 1) void attention_prefill(const AttentionArgs args) {
    launch_dependents();
    wait_for_inputs();
    extern __shared__ uint4 memory[];
    Shared& shared = *reinterpret_cast<Shared*>(memory);
    const Tile tile = args.tiles[blockIdx.x];
    u32 kv_head = blockIdx.y;
    const Sequence sequence = args.batch.sequences[args.batch.row_sequence[tile.first_row]];
    const u32* block_table = args.batch.block_tables + sequence.block_table;
    u32 position = args.batch.positions[tile.first_row];
    // What any row sees, and what all rows see.
    Visible any{visible_to(position, args.window).first, position + tile.tokens};
    Visible every{visible_to(position + tile.tokens - 1, args.window).first, position + 1};

    start_tile(shared, args, tile, kv_head);
    Outputs out;
    Softmax all[MY_ROWS];
    clear(out);
#pragma unroll
    for (int i = 0; i < MY_ROWS; ++i) all[i] = nothing_seen();

    for (u32 span = any.first / SPAN; span * SPAN < any.end; ++span) {
        Visible seen = within_span(any, span);
        // The span before has been used.
        __syncthreads();
        find_vectors(shared, args, block_table, kv_head, span, seen);
        __syncthreads();
        Pack<C> packs[MY_PACKS];
        load_vectors(args.cache, shared, 0, seen, packs);
        store_vectors(shared, packs);
        __syncthreads();
        // Values are on their way while scores are computed.
        load_vectors(args.cache, shared, value_offset(args.cache), seen, packs);
        Scores scores;
        compute_scores(shared, scores);
        Softmax part[MY_ROWS];
        compute_weights(shared, scores, args.scale, span, part);
        __syncthreads();
        store_vectors(shared, packs);
        __syncthreads();
        Outputs outputs;
        clear(outputs);
        bool whole = every.first <= span * SPAN && every.end >= (span + 1) * SPAN;
        if (whole) {
            compute_outputs(shared, outputs);
        } else {
            compute_masked_outputs(shared, span, seen, outputs);
        }
        merge_rows(shared, span, part, outputs, all, out);
    }
    store_rows(args, tile, kv_head, all, out);
}
