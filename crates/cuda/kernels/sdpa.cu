// Attention of whole sequences over values, with the scores materialised in f32: a block takes one (row, query head)
// after another.
//
// Each score is one ascending chain of fused multiply-adds over the head's dimensions; the visible ones go through a
// softmax whose sum is 256 chains (index modulo 256) and the tree of block_sum; each output is one ascending chain over
// the visible rows. Aliases: A activations.

constexpr int THREADS = 256;

struct Args {
    BatchView batch;
    // [rows][query_stride], [rows][key_stride], [rows][value_stride], [rows][out_stride].
    const A* query;
    const A* key;
    const A* value;
    A* out;
    // [blocks][score_stride].
    float* scores;
    u32 rows;
    u32 query_heads;
    u32 group;
    u32 dim;
    u32 query_stride;
    u32 key_stride;
    u32 value_stride;
    u32 out_stride;
    u32 score_stride;
    // Rows that a row sees, itself included; the largest u32 where there is no limit.
    u32 window;
    float scale;
    u32 unused;
};

__device__ __forceinline__ void attend(const Args& args, u32 row, u32 head, float* scores, float* shared) {
    const Sequence sequence = args.batch.sequences[args.batch.row_sequence[row]];
    u32 within = row - sequence.first_row;
    u32 first = sequence.first_row + (within + 1 > args.window ? within + 1 - args.window : 0);
    u32 count = row + 1 - first, kv_at = head / args.group * args.dim;
    const A* query = args.query + u64(row) * args.query_stride + head * args.dim;

    float largest = -infinity();
    for (u32 i = threadIdx.x; i < count; i += THREADS) {
        const A* key = args.key + u64(first + i) * args.key_stride + kv_at;
        float sum = 0.0f;
        for (u32 d = 0; d < args.dim; ++d) sum = mul_add(to_f32(query[d]), to_f32(key[d]), sum);
        scores[i] = sum * args.scale;
        largest = larger(largest, scores[i]);
    }
    largest = block_max<THREADS>(largest, shared);
    float sum = 0.0f;
    for (u32 i = threadIdx.x; i < count; i += THREADS) {
        scores[i] = exponential(scores[i] - largest);
        sum = sum + scores[i];
    }
    // All have read the largest score before its place is used again.
    __syncthreads();
    sum = block_sum<THREADS>(sum, shared);
    for (u32 i = threadIdx.x; i < count; i += THREADS) scores[i] = divide(scores[i], sum);
    __syncthreads();
    A* out = args.out + u64(row) * args.out_stride + head * args.dim;
    for (u32 d = threadIdx.x; d < args.dim; d += THREADS) {
        const A* value = args.value + u64(first) * args.value_stride + kv_at + d;
        float result = 0.0f;
        for (u32 i = 0; i < count; ++i) {
            result = mul_add(scores[i], to_f32(value[u64(i) * args.value_stride]), result);
        }
        out[d] = from_f32<A>(result);
    }
    // The scores are used up.
    __syncthreads();
}

extern "C" __global__ __launch_bounds__(THREADS) void sdpa(const Args args) {
    launch_dependents();
    wait_for_inputs();
    __shared__ float shared[THREADS];
    float* scores = args.scores + u64(blockIdx.x) * args.score_stride;
    for (u32 item = blockIdx.x; item < args.rows * args.query_heads; item += gridDim.x) {
        attend(args, item / args.query_heads, item % args.query_heads, scores, shared);
    }
}
