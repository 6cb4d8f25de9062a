// Merges the records of decoded rows in ascending order: one block for each (query head, row).
//
// Each record is joined to those before it, both sides scaled to the larger of their largest scores. The largest scores
// so far are a running maximum, so that all factors of a chunk of records are computed at once; the sums remain chains
// in ascending order.
//
// Aliases: those of cache.cuh, DIM, and RECORD, the positions of a record: SPAN where a record is a span, more where it
// is a section of attention_mma.cuh, whose exponents have base 2.

constexpr int THREADS = 128;
constexpr int WARPS = THREADS / 32;
// Records that are in shared memory at a time.
constexpr u32 CHUNK = minimum(THREADS, 32 * 1024 / (DIM * 4));
constexpr int DIMS = (DIM + THREADS - 1) / THREADS;

struct Shared {
    float parts[CHUNK][DIM];
    Factors by[THREADS];
    float sum[THREADS];
    float warp_largest[WARPS];
};

// The largest of `x` over this and all lower threads.
__device__ __forceinline__ float running_largest(float x, Shared& shared) {
    u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
    for (int distance = 1; distance < 32; distance *= 2) {
        float lower = __shfl_up_sync(FULL_WARP, x, distance);
        if (lane >= distance) x = larger(x, lower);
    }
    if (lane == 31) shared.warp_largest[warp] = x;
    __syncthreads();
    for (u32 i = 0; i < warp; ++i) x = larger(x, shared.warp_largest[i]);
    return x;
}

__device__ __forceinline__ Factors factors_of(float before, float largest, float joined) {
    if (RECORD == SPAN) return factors(before, largest, joined);
    float shift = finite_or_zero(joined);
    return Factors{power_of_two(before - shift), power_of_two(largest - shift)};
}

// The factors of a chunk, a record for each thread; the largest score so far is brought up to date.
__device__ __forceinline__ void compute_factors(Shared& shared, Softmax part, float& largest) {
    float joined = running_largest(larger(largest, part.largest), shared);
    float before = __shfl_up_sync(FULL_WARP, joined, 1);
    if (threadIdx.x % 32 == 0) {
        before = largest;
        for (u32 i = 0; i < threadIdx.x / 32; ++i) before = larger(before, shared.warp_largest[i]);
    }
    shared.by[threadIdx.x] = factors_of(before, part.largest, joined);
    shared.sum[threadIdx.x] = part.sum;
    for (u32 i = 0; i < WARPS; ++i) largest = larger(largest, shared.warp_largest[i]);
}

extern "C" __global__ __launch_bounds__(THREADS) void attention_merge(const AttentionArgs args) {
    __shared__ __align__(16) Shared shared;
    launch_dependents();
    u32 head = blockIdx.x, row = args.rows[blockIdx.y];
    Visible visible = visible_to(args.batch.positions[row], args.window);
    u32 records = (visible.end - 1) / RECORD - visible.first / RECORD + 1;
    // Before any block ends: where all rows have one record, the kernel after this one would else not wait for the one
    // before it.
    wait_for_inputs();
    // The block of a single record has stored the result.
    if (records == 1) return;

    u64 record = (u64(blockIdx.y) * args.query_heads + head) * args.records;
    Softmax all = nothing_seen();
    float out[DIMS];
#pragma unroll
    for (int j = 0; j < DIMS; ++j) out[j] = 0.0f;

    for (u32 start = 0; start < records; start += CHUNK) {
        u32 count = minimum(records - start, CHUNK);
        const float* parts = args.parts + (record + start) * DIM;
        for (u32 i = threadIdx.x * 4; i < count * DIM; i += THREADS * 4) copy_async_16(&shared.parts[0][i], parts + i);
        copy_async_commit();
        Softmax part = nothing_seen();
        if (threadIdx.x < count) part = args.part_softmax[record + start + threadIdx.x];
        compute_factors(shared, part, all.largest);
        copy_async_wait<0>();
        __syncthreads();
#pragma unroll 8
        for (u32 i = 0; i < count; ++i) {
            Factors by = shared.by[i];
            all.sum = mul_add(shared.sum[i], by.part, all.sum * by.before);
#pragma unroll
            for (int j = 0; j < DIMS; ++j) {
                u32 dim = threadIdx.x + j * THREADS;
                if (dim < DIM) out[j] = merge_output(out[j], shared.parts[i][dim], by);
            }
        }
        __syncthreads();
    }
    A* to = args.out + u64(row) * args.out_stride + head * DIM;
#pragma unroll
    for (int j = 0; j < DIMS; ++j) {
        u32 dim = threadIdx.x + j * THREADS;
        if (dim < DIM) to[dim] = from_f32<A>(divide(out[j], all.sum));
    }
}
