// Attention of single query rows: one block for each (span, key head, row), which serves all query heads of the group,
// so that keys and values are read once.
//
// The arithmetic is that of attention_prefill.cu, to the bit:
// - a score is one chain of fused multiply-adds over the head's dimensions, ascending, times the scale, times the key's
//   stored scale where there is one;
// - a span's weights exp(score - largest) are summed in 16 chains (position modulo 16, ascending) and then as a tree;
// - each output is one chain of fused multiply-adds over the span's visible positions, ascending, of weights (times
//   the value's stored scale) and values;
// - spans are merged in ascending order, see attention_merge.cu.
//
// Aliases: those of cache.cuh, DIM (values of a head, a multiple of 8) and GROUP (query heads of a key head).

constexpr int THREADS = 128;
constexpr int WARPS = THREADS / 32;
constexpr int PER_PACK = Pack<C>::VALUES;
// Packs of a vector in memory, and in shared memory, where an odd number keeps rows in different banks.
constexpr int PACKS = (DIM + PER_PACK - 1) / PER_PACK;
constexpr int KEY_PACKS = PACKS | 1;

// Where values may lie beside the keys, both are loaded at once; else values replace the keys.
constexpr bool TOGETHER = SPAN * (KEY_PACKS + PACKS) * 16 <= 64 * 1024;

// Scores: two threads a position, each with every second head.
constexpr int SCORE_HEADS = (GROUP + 1) / 2;

// Outputs: a lane has two neighbouring dimensions, a warp 64; the warps share heads and, for wide heads, dimensions.
constexpr int CHUNKS = (DIM + 63) / 64;
constexpr int CHUNK_WARPS = CHUNKS >= 4 ? 4 : CHUNKS >= 2 ? 2 : 1;
constexpr int HEAD_WARPS = WARPS / CHUNK_WARPS;
constexpr int OUT_CHUNKS = (CHUNKS + CHUNK_WARPS - 1) / CHUNK_WARPS;
constexpr int OUT_HEADS = (GROUP + HEAD_WARPS - 1) / HEAD_WARPS;

static_assert(THREADS == 2 * SPAN, "two threads a position");

struct Shared {
    float query[GROUP][DIM];
    // Scores, then weights.
    float weights[GROUP][SPAN];
    Softmax softmax[GROUP];
    u32 vector[SPAN];
    float key_scale[SPAN];
    float value_scale[SPAN];
};

// Starts copying the vectors of the visible positions into shared memory, `row_packs` packs apart.
__device__ __forceinline__ void start_copy(
    const CacheLayer& cache, const u32* vector, u32 offset, Visible seen, uint4* to, int row_packs
) {
    for (u32 i = seen.first * PACKS + threadIdx.x; i < seen.end * PACKS; i += THREADS) {
        u32 position = i / PACKS, pack = i % PACKS;
        const C* from = cache.values + u64(vector[position] + offset) * cache.stride + pack * PER_PACK;
        copy_async_16(to + position * row_packs + pack, from);
    }
    copy_async_commit();
}

__device__ __forceinline__ void compute_scores(Shared& shared, const uint4* keys, float scale, Visible seen) {
    u32 position = threadIdx.x % SPAN, parity = threadIdx.x / SPAN;
    bool visible = position >= seen.first && position < seen.end;
    float score[SCORE_HEADS];
#pragma unroll
    for (int i = 0; i < SCORE_HEADS; ++i) score[i] = 0.0f;
    if (visible) {
        const C* key = reinterpret_cast<const C*>(keys + position * KEY_PACKS);
#pragma unroll 4
        for (int pack = 0; pack < PACKS; ++pack) {
            float k[PER_PACK];
            decode(load_pack(key + pack * PER_PACK), k);
#pragma unroll
            for (int i = 0; i < SCORE_HEADS; ++i) {
                // The last head may be computed twice: it is stored once.
                int head = minimum(2 * i + int(parity), GROUP - 1);
                const float* query = shared.query[head] + pack * PER_PACK;
#pragma unroll
                for (int d = 0; d < PER_PACK; d += 4) {
                    if (pack * PER_PACK + d < DIM) {
                        float4 q = *reinterpret_cast<const float4*>(query + d);
                        score[i] = mul_add(q.x, k[d], score[i]);
                        score[i] = mul_add(q.y, k[d + 1], score[i]);
                        score[i] = mul_add(q.z, k[d + 2], score[i]);
                        score[i] = mul_add(q.w, k[d + 3], score[i]);
                    }
                }
            }
        }
    }
#pragma unroll
    for (int i = 0; i < SCORE_HEADS; ++i) {
        int head = 2 * i + int(parity);
        float scaled = score[i] * scale;
        if (SCALED) scaled = scaled * shared.key_scale[position];
        if (head < GROUP) shared.weights[head][position] = visible ? scaled : -infinity();
    }
}

// Half a warp a head, four positions a lane.
__device__ __forceinline__ void compute_weights(Shared& shared, Visible seen) {
    u32 half = threadIdx.x / 16, lane = threadIdx.x % 16;
    for (u32 first = half & ~1u; first < GROUP; first += THREADS / 16) {
        // Both halves of a warp take part in its shuffles, also where one has no head.
        u32 head = first + half % 2;
        bool mine = head < GROUP;
        float* scores = shared.weights[mine ? head : 0];
        float score[4], largest = -infinity(), sum = 0.0f;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            score[i] = scores[lane + 16 * i];
            largest = larger(largest, score[i]);
        }
        largest = warp_max<16>(largest);
        float shift = finite_or_zero(largest);
        __syncwarp();
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            u32 position = lane + 16 * i;
            bool visible = position >= seen.first && position < seen.end;
            float weight = visible ? exponential_below_one(score[i] - shift) : 0.0f;
            sum = sum + weight;
            if (SCALED && visible) weight = weight * shared.value_scale[position];
            if (mine) scores[position] = weight;
        }
        sum = warp_sum<16>(sum);
        if (mine && lane == 0) shared.softmax[head] = Softmax{largest, sum};
    }
}

struct Outputs {
    float value[OUT_HEADS][OUT_CHUNKS][2];
};

__device__ __forceinline__ int out_head(int i) { return int(threadIdx.x / 32) / CHUNK_WARPS + HEAD_WARPS * i; }
__device__ __forceinline__ int out_dim(int j) {
    return 64 * (int(threadIdx.x / 32) % CHUNK_WARPS + CHUNK_WARPS * j) + 2 * int(threadIdx.x % 32);
}

// One position: its value, read by the lanes that have its dimensions, times its weight for each head.
__device__ __forceinline__ void add_value(Outputs& out, const uint4* values, u32 position, const float* weight) {
    const C* row = reinterpret_cast<const C*>(values + position * PACKS);
#pragma unroll
    for (int j = 0; j < OUT_CHUNKS; ++j) {
        int dim = out_dim(j);
        if (dim >= DIM) continue;
        float v[2];
        decode(load_few<C, 2>(row + dim), v);
#pragma unroll
        for (int i = 0; i < OUT_HEADS; ++i) {
            out.value[i][j][0] = mul_add(weight[i], v[0], out.value[i][j][0]);
            out.value[i][j][1] = mul_add(weight[i], v[1], out.value[i][j][1]);
        }
    }
}

__device__ __forceinline__ void compute_outputs(
    const Shared& shared, const uint4* values, Visible seen, Outputs& out
) {
#pragma unroll
    for (int i = 0; i < OUT_HEADS; ++i) {
#pragma unroll
        for (int j = 0; j < OUT_CHUNKS; ++j) out.value[i][j][0] = out.value[i][j][1] = 0.0f;
    }
    // Four positions at a time, so that their weights are one load. A warp may have no head of this number: it
    // computes one that it does not store.
    for (u32 start = seen.first & ~3u; start < seen.end; start += 4) {
        float weight[4][OUT_HEADS];
#pragma unroll
        for (int i = 0; i < OUT_HEADS; ++i) {
            int head = minimum(out_head(i), GROUP - 1);
            float4 four = *reinterpret_cast<const float4*>(shared.weights[head] + start);
            weight[0][i] = four.x;
            weight[1][i] = four.y;
            weight[2][i] = four.z;
            weight[3][i] = four.w;
        }
#pragma unroll
        for (u32 i = 0; i < 4; ++i) {
            if (start + i >= seen.first && start + i < seen.end) add_value(out, values, start + i, weight[i]);
        }
    }
}

extern "C" __global__ __launch_bounds__(THREADS, 4) void attention_decode(const AttentionArgs args) {
    launch_dependents();
    wait_for_inputs();
    extern __shared__ uint4 staged[];
    __shared__ __align__(16) Shared shared;
    uint4* keys = staged;
    uint4* values = TOGETHER ? staged + SPAN * KEY_PACKS : staged;

    u32 row = args.rows[blockIdx.z], kv_head = blockIdx.y;
    Visible visible = visible_to(args.batch.positions[row], args.window);
    u32 first_span = visible.first / SPAN, spans = (visible.end - 1) / SPAN - first_span + 1;
    if (blockIdx.x >= spans) return;
    u32 span = first_span + blockIdx.x;
    Visible seen = within_span(visible, span);

    if (threadIdx.x >= seen.first && threadIdx.x < seen.end) {
        const Sequence sequence = args.batch.sequences[args.batch.row_sequence[row]];
        const u32* block_table = args.batch.block_tables + sequence.block_table;
        u32 key = key_vector(args.cache, block_table, kv_head, span * SPAN + threadIdx.x);
        shared.vector[threadIdx.x] = key;
        if (SCALED) {
            shared.key_scale[threadIdx.x] = to_f32(args.cache.scales[key]);
            shared.value_scale[threadIdx.x] = to_f32(args.cache.scales[key + value_offset(args.cache)]);
        }
    }
    __syncthreads();
    u32 to_values = value_offset(args.cache);
    start_copy(args.cache, shared.vector, 0, seen, keys, KEY_PACKS);
    if (TOGETHER) start_copy(args.cache, shared.vector, to_values, seen, values, PACKS);
    const A* query = args.query + u64(row) * args.query_stride + kv_head * GROUP * DIM;
    for (u32 i = threadIdx.x; i < GROUP * DIM; i += THREADS) shared.query[i / DIM][i % DIM] = to_f32(query[i]);
    if (TOGETHER) {
        copy_async_wait<1>();
    } else {
        copy_async_wait<0>();
    }
    __syncthreads();
    compute_scores(shared, keys, args.scale, seen);
    __syncthreads();
    if (!TOGETHER) start_copy(args.cache, shared.vector, to_values, seen, values, PACKS);
    compute_weights(shared, seen);
    copy_async_wait<0>();
    __syncthreads();

    Outputs out;
    compute_outputs(shared, values, seen, out);
#pragma unroll
    for (int i = 0; i < OUT_HEADS; ++i) {
        if (out_head(i) >= GROUP) continue;
        u32 head = kv_head * GROUP + out_head(i);
        Softmax part = shared.softmax[out_head(i)];
        u64 record = (u64(blockIdx.z) * args.query_heads + head) * args.records + blockIdx.x;
        Softmax all = nothing_seen();
        Factors by = merge(all, part);
        if (spans > 1 && threadIdx.x % 32 == 0 && out_dim(0) < 64) args.part_softmax[record] = part;
#pragma unroll
        for (int j = 0; j < OUT_CHUNKS; ++j) {
            int dim = out_dim(j);
            if (dim >= DIM) continue;
            float two[2] = {out.value[i][j][0], out.value[i][j][1]};
            if (spans > 1) {
                store_few(args.parts + record * DIM + dim, encode<f32>(two));
            } else {
                two[0] = divide(merge_output(0.0f, two[0], by), all.sum);
                two[1] = divide(merge_output(0.0f, two[1], by), all.sum);
                store_few(args.out + u64(row) * args.out_stride + head * DIM + dim, encode<A>(two));
            }
        }
    }
}
