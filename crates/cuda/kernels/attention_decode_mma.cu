// Attention of single query rows on the tensor cores: the arithmetic of attention_mma.cuh.
//
// A block works on (row, up to 16 query heads of one key head, every gridDim.x-th section of positions). Its warps take
// the spans of a section; each has its own keys and values in shared memory, and starts copying those of its next span
// as soon as it has used them. At the end of a section the block merges its spans. Where blocks share the sections of a
// row, they leave a record of each in memory, which attention_merge.cu merges.
//
// The batch is complete before the first kernel of a step starts, and so are the keys and values of earlier steps: these
// are requested before the kernels in front have ended.
//
// Aliases: those of attention_span.cuh, WARPS (a divisor of SECTION) and SHARED (bytes of shared memory).

constexpr int THREADS = 32 * WARPS;
constexpr int TILES = (GROUP + HEADS - 1) / HEADS;
// Blocks that a multiprocessor should have registers for: two on Hopper; for other architectures the compiler would spill.
#if __CUDA_ARCH__ == 900
constexpr int RESIDENT = SHARED <= 112 * 1024 && WARPS >= 8 ? 2 : 1;
#else
constexpr int RESIDENT = 1;
#endif
// Values from one vector to the next in memory.
constexpr int STRIDE = (DIM + PER_PACK - 1) / PER_PACK * PER_PACK;

// What a warp has of a span.
struct Staged {
    Vectors keys;
    Vectors values;
    SpanScales scales;
};

struct Shared {
    Staged staged[WARPS];
    Section section;
    // What sections have been merged so far, where the block has all of them.
    float total[HEADS][OUT_STRIDE];
    Softmax total_softmax[HEADS][PAIRS];
};

static_assert(sizeof(Shared) == SHARED, "what the launch gives");

// What a block works on.
struct Row {
    u32 number;
    const u32* block_table;
    Visible visible;
    // Positions before this one were written by earlier steps.
    u32 settled;
    u32 kv_head;
    u32 first_head;
    u32 heads;
    u32 first_section;
    u32 sections;
};

__device__ __forceinline__ Row find_row(const AttentionArgs& args) {
    u32 number = args.rows[blockIdx.z], tile = blockIdx.y % TILES;
    const Sequence sequence = args.batch.sequences[args.batch.row_sequence[number]];
    Row row;
    row.number = number;
    row.block_table = args.batch.block_tables + sequence.block_table;
    row.visible = visible_to(args.batch.positions[number], args.window);
    row.settled = args.batch.positions[sequence.first_row];
    row.kv_head = blockIdx.y / TILES;
    row.first_head = row.kv_head * GROUP + tile * HEADS;
    row.heads = minimum(u32(HEADS), GROUP - tile * HEADS);
    row.first_section = row.visible.first / (SPAN * SECTION);
    row.sections = (row.visible.end - 1) / (SPAN * SECTION) - row.first_section + 1;
    return row;
}

// The spans of a warp: those of its number, modulo WARPS, of the block's sections.
__device__ __forceinline__ u32 next_span(u32 span) {
    u32 next = span + WARPS;
    return next % SECTION >= WARPS ? next : next + (gridDim.x - 1) * SECTION;
}
__device__ __forceinline__ bool is_seen(const Row& row, u32 span) {
    return span * SPAN < row.visible.end && (span + 1) * SPAN > row.visible.first;
}

// --------------------------------------------------------------------------------------------------------- copying

// Starts copying 16 bytes, of which those from `bytes` on are zeros.
__device__ __forceinline__ void copy_async_some(u32 shared, const void* global, u32 bytes) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared), "l"(global), "r"(bytes)
                 : "memory");
}

// Starts copying the vectors of a span, which is a group of copies also if there is none; zeros take the place of
// positions that the row does not see.
__device__ __forceinline__ void start_copy(
    const CacheLayer& cache, const Row& row, u32 span, u32 runs, u32 offset, Vectors& vectors
) {
    if (span * SPAN < row.visible.end) {
        Visible seen = within_span(row.visible, span);
        u32 to = shared_address(vectors);
#pragma unroll 1
        for (u32 run = 0; run < SPAN / RUN; ++run) {
            u32 vector = __shfl_sync(FULL_WARP, runs, run) + offset;
            const C* from = cache.values + u64(vector) * STRIDE;
#pragma unroll
            for (u32 start = 0; start < RUN * PACKS; start += 32) {
                u32 index = start + lane(), position = run * RUN + index / PACKS, pack = index % PACKS;
                bool visible = position >= seen.first && position < seen.end;
                u32 left = DIM > pack * PER_PACK ? (DIM - pack * PER_PACK) * u32(sizeof(C)) : 0;
                const C* pack_from = from + index / PACKS * STRIDE + pack * PER_PACK;
                if (RUN * PACKS % 32 == 0 || index < RUN * PACKS) {
                    copy_async_some(to + pack_offset(position, pack), pack_from, visible ? minimum(left, 16u) : 0);
                }
            }
        }
    }
    copy_async_commit();
}

// The query heads of the block.
__device__ __forceinline__ void load_query(const AttentionArgs& args, const Row& row, Query& query) {
    constexpr int NEAR = sizeof(C) == 2 ? 2 : 4, FAR = sizeof(C) == 2 ? 8 : 2;
    const A* from = args.query + u64(row.number) * args.query_stride + row.first_head * DIM;
#pragma unroll
    for (int step = 0; step < DIM_STEPS; ++step) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            u32 head = lane() / 4 + i % 2 * 8, dim = 16 * step + NEAR * (lane() % 4) + i / 2 * FAR;
            bool inside = i % 2 < HALVES && head < row.heads && dim < DIM;
            query[step][i] = inside ? load_few<A, 2>(from + head * DIM + dim).raw.bits : 0;
        }
    }
}

// ------------------------------------------------------------------------------------------------------- merging

__device__ __forceinline__ void add_part(Merged& all, const Merged& part) {
    Factors by = join(all.softmax, part.softmax);
    all.out = float2{merge_output(all.out.x, part.out.x, by), merge_output(all.out.y, part.out.y, by)};
}

__device__ __forceinline__ void finish(
    const AttentionArgs& args, const Row& row, u32 head, u32 dim, const Merged& all
) {
    float two[2] = {divide(all.out.x, all.softmax.sum), divide(all.out.y, all.softmax.sum)};
    A* to = args.out + u64(row.number) * args.out_stride + (row.first_head + head) * DIM + dim;
    store_few(to, encode<A>(two));
}

// Merges a section. Where the row's sections are spread over blocks, its record goes to memory, else it is joined to the
// sections before it; the last of them finishes the row.
__device__ __forceinline__ void merge_section(const AttentionArgs& args, Shared& shared, const Row& row, u32 section) {
    u32 start = section * SECTION, number = section - row.first_section;
    u32 first = maximum(row.visible.first / SPAN, start) - start;
    u32 end = minimum((row.visible.end - 1) / SPAN + 1 - start, SECTION);
    for (u32 item = threadIdx.x; item < round_up(HEADS * SECTION, 32); item += THREADS) {
        join_spans(shared.section, first, end, item);
    }
    __syncthreads();
    for (u32 item = threadIdx.x; item < row.heads * PAIRS; item += THREADS) {
        u32 head = item / PAIRS, dim = item % PAIRS * 2;
        Merged part = merge_spans(shared.section, first, end, head, dim);
        if (gridDim.x > 1 && row.sections > 1) {
            u64 record = (u64(blockIdx.z) * args.query_heads + row.first_head + head) * args.records + number;
            *reinterpret_cast<float2*>(args.parts + record * DIM + dim) = part.out;
            if (dim == 0) args.part_softmax[record] = part.softmax;
            continue;
        }
        // What is joined to nothing stays the same, but for the sign of zeros.
        Merged all{part.softmax, float2{part.out.x + 0.0f, part.out.y + 0.0f}};
        float2* total = reinterpret_cast<float2*>(&shared.total[head][dim]);
        Softmax* softmax = &shared.total_softmax[head][dim / 2];
        if (number > 0) {
            all = Merged{*softmax, *total};
            add_part(all, part);
        }
        if (number + 1 == row.sections) {
            finish(args, row, head, dim, all);
        } else {
            *softmax = all.softmax;
            *total = all.out;
        }
    }
}

extern "C" __global__ __launch_bounds__(THREADS, RESIDENT) void attention_decode_mma(const AttentionArgs args) {
    extern __shared__ uint4 memory[];
    Shared& shared = *reinterpret_cast<Shared*>(memory);
    Staged& staged = shared.staged[warp()];
    launch_dependents();
    Row row = find_row(args);
    if (blockIdx.x >= row.sections) return;

    u32 section = row.first_section + blockIdx.x;
    u32 span = section * SECTION + warp();
    while (span * SPAN < row.visible.end && !is_seen(row, span)) span = next_span(span);
    u32 runs = find_runs(args.cache, row.block_table, row.kv_head, row.visible, span), offset = value_offset(args.cache);
    bool early = minimum((span + 1) * SPAN, row.visible.end) <= row.settled;
    if (!early) wait_for_inputs();
    start_copy(args.cache, row, span, runs, 0, staged.keys);
    start_copy(args.cache, row, span, runs, offset, staged.values);
    Scales scales;
    load_scales(args.cache, row.block_table, row.kv_head, row.visible, span, scales);
    wait_for_inputs();
    Query query;
    load_query(args, row, query);

#pragma unroll 1
    for (; section < row.first_section + row.sections; section += gridDim.x) {
#pragma unroll 1
        while (span * SPAN < row.visible.end && span / SECTION == section) {
            const u32 next = next_span(span);
            const Visible seen = within_span(row.visible, span);
            runs = find_runs(args.cache, row.block_table, row.kv_head, row.visible, next);
            store_scales(staged.scales, scales, seen);
            copy_async_wait<1>();
            __syncwarp();
            load_scales(args.cache, row.block_table, row.kv_head, row.visible, next, scales);
            Scores scores;
            compute_scores(shared_address(staged.keys), query, scores);
            __syncwarp();
            start_copy(args.cache, row, next, runs, 0, staged.keys);
            Weights weights;
            SpanSoftmax& softmax = shared.section.softmax[span % SECTION];
            compute_weights(staged.scales, seen, args.scale, scores, softmax, weights);
            copy_async_wait<1>();
            __syncwarp();
            compute_outputs(shared_address(staged.values), weights, shared.section.outputs[span % SECTION]);
            __syncwarp();
            start_copy(args.cache, row, next, runs, offset, staged.values);
            span = next;
        }
        __syncthreads();
        merge_section(args, shared, row, section);
        __syncthreads();
    }
}
