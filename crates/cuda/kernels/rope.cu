// Rotary position embedding on its own: dimensions i and i + pairs of a head form a pair, the others pass. In f32, the
// products with the sines fused into the sums, each result rounded once. One row of blocks for each row of the batch.
// Aliases: A activations.

constexpr int THREADS = 128;

struct Args {
    BatchView batch;
    // [rows][input_stride] and [rows][out_stride].
    const A* input;
    A* out;
    // [set][context][pairs] each, times the attention factor.
    const f32* cos;
    const f32* sin;
    u32 width;
    u32 head_dim;
    u32 pairs;
    u32 context;
    u32 input_stride;
    u32 out_stride;
};

extern "C" __global__ __launch_bounds__(THREADS) void rope(const Args args) {
    launch_dependents();
    wait_for_inputs();
    u32 row = blockIdx.x, index = blockIdx.y * THREADS + threadIdx.x;
    if (index >= args.width) return;
    const A* input = args.input + u64(row) * args.input_stride;
    u32 dim = index % args.head_dim;
    float x = to_f32(input[index]);
    if (dim < 2 * args.pairs) {
        const Sequence sequence = args.batch.sequences[args.batch.row_sequence[row]];
        u32 pair = dim % args.pairs;
        u64 at = (u64(sequence.rope_set) * args.context + args.batch.positions[row]) * args.pairs + pair;
        float cos = args.cos[at], sin = args.sin[at];
        bool first = dim < args.pairs;
        float other = to_f32(input[first ? index + args.pairs : index - args.pairs]);
        x = mul_add(other, first ? -sin : sin, x * cos);
    }
    args.out[u64(row) * args.out_stride + index] = from_f32<A>(x);
}
