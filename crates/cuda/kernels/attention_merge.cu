// Merges the spans of decoded rows in ascending order: one block for each (query head, row).
//
// Each span is joined to those before it, both sides scaled to the larger of their largest scores. The largest scores
// so far are a running maximum, so that all factors of up to THREADS spans are computed at once; the sums remain chains
// in ascending order. Aliases: those of cache.cuh and DIM.

constexpr int THREADS = 128;
constexpr int WARPS = THREADS / 32;
constexpr int DIMS = (DIM + THREADS - 1) / THREADS;

struct Shared {
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

extern "C" __global__ __launch_bounds__(THREADS, 4) void attention_merge(const AttentionArgs args) {
    launch_dependents();
    wait_for_inputs();
    __shared__ Shared shared;
    u32 head = blockIdx.x, row = args.rows[blockIdx.y];
    Visible visible = visible_to(args.batch.positions[row], args.window);
    u32 spans = (visible.end - 1) / SPAN - visible.first / SPAN + 1;
    // The block of a single span has stored the result.
    if (spans == 1) return;

    u64 record = (u64(blockIdx.y) * args.query_heads + head) * args.spans;
    const Softmax* softmax = args.part_softmax + record;
    const float* parts = args.parts + record * DIM;
    Softmax all = nothing_seen();
    float out[DIMS];
#pragma unroll
    for (int j = 0; j < DIMS; ++j) out[j] = 0.0f;

    for (u32 start = 0; start < spans; start += THREADS) {
        u32 count = minimum(spans - start, u32(THREADS));
        Softmax part = threadIdx.x < count ? softmax[start + threadIdx.x] : nothing_seen();
        float joined = running_largest(larger(all.largest, part.largest), shared);
        float before = __shfl_up_sync(FULL_WARP, joined, 1);
        if (threadIdx.x % 32 == 0) {
            before = all.largest;
            for (u32 i = 0; i < threadIdx.x / 32; ++i) before = larger(before, shared.warp_largest[i]);
        }
        shared.by[threadIdx.x] = factors(before, part.largest, joined);
        shared.sum[threadIdx.x] = part.sum;
        __syncthreads();
        for (u32 i = 0; i < WARPS; ++i) all.largest = larger(all.largest, shared.warp_largest[i]);
#pragma unroll 8
        for (u32 i = 0; i < count; ++i) {
            Factors by = shared.by[i];
            all.sum = mul_add(shared.sum[i], by.part, all.sum * by.before);
#pragma unroll
            for (int j = 0; j < DIMS; ++j) {
                u32 dim = threadIdx.x + j * THREADS;
                if (dim < DIM) out[j] = merge_output(out[j], parts[u64(start + i) * DIM + dim], by);
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
