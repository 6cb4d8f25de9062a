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
// Aliases: those of attention_span.cuh.

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

// ------------------------------------------------------------------------------------------------------- merging

// Two dimensions of a head, and its softmax.
struct Merged {
    Softmax softmax;
    float2 out;
};

__device__ __forceinline__ void add_part(Merged& all, const Merged& part) {
    Factors by = join(all.softmax, part.softmax);
    all.out = float2{merge_output(all.out.x, part.out.x, by), merge_output(all.out.y, part.out.y, by)};
}

// The factors of the section's spans, of which the row sees those from `first` up to, not including, `end`: what join()
// would find one after the other, all at once, because the largest exponents so far are a running maximum.
__device__ __forceinline__ void join_spans(Shared& shared, u32 first, u32 end) {
    for (u32 item = threadIdx.x; item < round_up(HEADS * SECTION, 32); item += THREADS) {
        u32 head = item / SECTION, i = item % SECTION;
        Softmax part = nothing_seen();
        if (head < HEADS && i >= first && i < end) part = shared.softmax[i][head];
        float joined = part.largest;
#pragma unroll
        for (u32 distance = 1; distance < SECTION; distance *= 2) {
            float lower = __shfl_up_sync(FULL_WARP, joined, distance, SECTION);
            if (i >= distance) joined = larger(joined, lower);
        }
        float before = __shfl_up_sync(FULL_WARP, joined, 1, SECTION), shift = finite_or_zero(joined);
        if (i == 0) before = -infinity();
        Factors by{power_of_two(before - shift), power_of_two(part.largest - shift)};
        if (head < HEADS) shared.joined[i][head] = Joined{by, part.sum, joined};
    }
    __syncthreads();
}

__device__ __forceinline__ Merged merge_spans(const Shared& shared, u32 first, u32 end, u32 head, u32 dim) {
    Joined joined[SECTION];
    float2 out[SECTION];
#pragma unroll
    for (u32 i = 0; i < SECTION; ++i) {
        joined[i] = shared.joined[i][head];
        out[i] = *reinterpret_cast<const float2*>(&shared.outputs[i][head][dim]);
    }
    Merged all{nothing_seen(), float2{0.0f, 0.0f}};
#pragma unroll
    for (u32 i = 0; i < SECTION; ++i) {
        if (i < first || i >= end) continue;
        Factors by = joined[i].by;
        all.softmax.sum = mul_add(joined[i].sum, by.part, all.softmax.sum * by.before);
        all.out = float2{merge_output(all.out.x, out[i].x, by), merge_output(all.out.y, out[i].y, by)};
    }
    all.softmax.largest = joined[SECTION - 1].largest;
    return all;
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
    join_spans(shared, first, end);
    for (u32 item = threadIdx.x; item < row.heads * PAIRS; item += THREADS) {
        u32 head = item / PAIRS, dim = item % PAIRS * 2;
        Merged part = merge_spans(shared, first, end, head, dim);
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

extern "C" __global__ __launch_bounds__(THREADS, 1) void attention_decode_mma(const AttentionArgs args) {
    extern __shared__ uint4 memory[];
    Shared& shared = *reinterpret_cast<Shared*>(memory);
    Staged& staged = shared.staged[warp()];
    launch_dependents();
    Row row = find_row(args);
    if (blockIdx.x >= row.sections) return;

    u32 section = row.first_section + blockIdx.x;
    u32 span = section * SECTION + warp();
    while (span * SPAN < row.visible.end && !is_seen(row, span)) span = next_span(span);
    u32 runs = find_runs(args.cache, row, span), offset = value_offset(args.cache);
    bool early = minimum((span + 1) * SPAN, row.visible.end) <= row.settled;
    if (!early) wait_for_inputs();
    start_copy(args.cache, row, span, runs, 0, staged.keys);
    start_copy(args.cache, row, span, runs, offset, staged.values);
    Scales scales;
    load_scales(args.cache, row, span, scales);
    wait_for_inputs();
    Query query;
    load_query(args, row, query);

#pragma unroll 1
    for (; section < row.first_section + row.sections; section += gridDim.x) {
#pragma unroll 1
        while (span * SPAN < row.visible.end && span / SECTION == section) {
            u32 next = next_span(span);
            runs = find_runs(args.cache, row, next);
            store_scales(staged, scales);
            copy_async_wait<1>();
            __syncwarp();
            load_scales(args.cache, row, next, scales);
            Scores scores;
            compute_scores(staged, query, scores);
            __syncwarp();
            start_copy(args.cache, row, next, runs, 0, staged.keys);
            Weights weights;
            Visible seen = within_span(row.visible, span);
            compute_weights(shared, staged, seen, span % SECTION, args.scale, scores, weights);
            copy_async_wait<1>();
            __syncwarp();
            compute_outputs(shared, staged, span % SECTION, weights);
            __syncwarp();
            start_copy(args.cache, row, next, runs, offset, staged.values);
            span = next;
        }
        __syncthreads();
        merge_section(args, shared, row, section);
        __syncthreads();
    }
}
