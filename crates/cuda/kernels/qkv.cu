// What follows the projection of queries, keys and values: bias, head norms, RoPE, the store of queries, and the write of
// keys and values into the cache. One warp for each head of each row; everything is f32 until the one rounding.
//
// A head norm sums squares in 32 chains (dimension modulo 32, ascending) and the tree of warp_sum. For e4m3 each vector
// has a scale, its largest magnitude divided by 448 and rounded to the format of the scales; the vector is divided by the
// stored scale and rounded with saturation. Aliases: those of cache.cuh, and MINE, the values of a head that a lane holds.

constexpr int WARPS = 4;
constexpr int THREADS = 32 * WARPS;
// Values of a head, at most.
constexpr int MAX_DIM = MINE * 32;

struct Args {
    BatchView batch;
    CacheLayer cache;
    // [rows][product_stride]: queries, keys, values.
    const float* products;
    // One per product, or null.
    const f32* bias;
    // [dim] each, or null.
    const f32* query_norm;
    const f32* key_norm;
    // [set][context][pairs] each, or null.
    const f32* cos;
    const f32* sin;
    // [rows][query_stride].
    A* query;
    u32 product_stride;
    u32 query_stride;
    u32 query_heads;
    u32 key_heads;
    u32 dim;
    u32 pairs;
    u32 context;
    float eps;
};

// The values of one head in a warp: lane l holds dimensions l, l + 32, and so on; what is beyond the head is zero.
struct Head {
    float value[MINE];
};

__device__ __forceinline__ u32 dim_of(int i) { return threadIdx.x % 32 + 32 * i; }

__device__ __forceinline__ Head load_head(const Args& args, u32 row, u32 head) {
    Head x;
    const float* products = args.products + u64(row) * args.product_stride + head * args.dim;
#pragma unroll
    for (int i = 0; i < MINE; ++i) {
        u32 d = dim_of(i);
        x.value[i] = d < args.dim ? products[d] : 0.0f;
        if (args.bias && d < args.dim) x.value[i] = x.value[i] + args.bias[head * args.dim + d];
    }
    return x;
}

__device__ __forceinline__ void normalise(const Args& args, const f32* weight, Head& x) {
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < MINE; ++i) sum = mul_add(x.value[i], x.value[i], sum);
    sum = warp_sum(sum);
    float inverse = divide(1.0f, square_root(divide(sum, float(args.dim)) + args.eps));
#pragma unroll
    for (int i = 0; i < MINE; ++i) {
        if (dim_of(i) < args.dim) x.value[i] = (x.value[i] * inverse) * weight[dim_of(i)];
    }
}

// `shared` holds MAX_DIM floats of this warp.
__device__ __forceinline__ void rotate(const Args& args, u32 row, u32 rope_set, float* shared, Head& x) {
#pragma unroll
    for (int i = 0; i < MINE; ++i) shared[dim_of(i)] = x.value[i];
    __syncwarp();
    u64 at = (u64(rope_set) * args.context + args.batch.positions[row]) * args.pairs;
#pragma unroll
    for (int i = 0; i < MINE; ++i) {
        u32 d = dim_of(i);
        if (d < 2 * args.pairs) {
            bool first = d < args.pairs;
            u32 pair = first ? d : d - args.pairs;
            float other = shared[first ? d + args.pairs : pair];
            float cos = args.cos[at + pair], sin = args.sin[at + pair];
            x.value[i] = mul_add(other, first ? -sin : sin, x.value[i] * cos);
        }
    }
}

__device__ __forceinline__ S scale_of(const Head& x) {
    float largest = 0.0f;
#pragma unroll
    for (int i = 0; i < MINE; ++i) largest = larger(fabsf(x.value[i]), largest);
    return stored_scale(warp_max(largest));
}

__device__ __forceinline__ void write_cache(const Args& args, u32 vector, const Head& x) {
    float divisor = 1.0f;
    if (SCALED) {
        S scale = scale_of(x);
        if (threadIdx.x % 32 == 0) args.cache.scales[vector] = scale;
        divisor = divisor_of(scale);
    }
    C* to = args.cache.values + u64(vector) * args.cache.stride;
#pragma unroll
    for (int i = 0; i < MINE; ++i) {
        if (dim_of(i) >= args.dim) continue;
        float value = SCALED ? divide(x.value[i], divisor) : x.value[i];
        to[dim_of(i)] = from_f32<C>(value);
    }
}

extern "C" __global__ __launch_bounds__(THREADS) void qkv_epilogue(const Args args) {
    launch_dependents();
    wait_for_inputs();
    __shared__ float shared[WARPS][MAX_DIM];
    u32 warp = threadIdx.x / 32, row = blockIdx.x, head = blockIdx.y * WARPS + warp;
    if (head >= args.query_heads + 2 * args.key_heads) return;
    const Sequence sequence = args.batch.sequences[args.batch.row_sequence[row]];
    Head x = load_head(args, row, head);
    bool is_query = head < args.query_heads;
    if (head < args.query_heads + args.key_heads) {
        const f32* norm = is_query ? args.query_norm : args.key_norm;
        if (norm) normalise(args, norm, x);
        if (args.cos) rotate(args, row, sequence.rope_set, shared[warp], x);
    }
    if (is_query) {
        A* query = args.query + u64(row) * args.query_stride + head * args.dim;
#pragma unroll
        for (int i = 0; i < MINE; ++i) {
            if (dim_of(i) < args.dim) query[dim_of(i)] = from_f32<A>(x.value[i]);
        }
        return;
    }
    u32 cached = head - args.query_heads;
    bool is_key = cached < args.key_heads;
    const u32* block_table = args.batch.block_tables + sequence.block_table;
    u32 kv_head = is_key ? cached : cached - args.key_heads;
    u32 vector = key_vector(args.cache, block_table, kv_head, args.batch.positions[row]);
    write_cache(args, is_key ? vector : vector + value_offset(args.cache), x);
}
