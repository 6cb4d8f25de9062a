// Sums of activations, rounded once. One row of blocks for each row. Aliases: A activations.

constexpr int THREADS = 128;
constexpr int EACH = 4;

struct Args {
    // [rows][stride] each; the sum may replace a summand.
    const A* left;
    const A* right;
    A* out;
    u32 width;
    u32 left_stride;
    u32 right_stride;
    u32 out_stride;
};

extern "C" __global__ __launch_bounds__(THREADS) void add(const Args args) {
    launch_dependents();
    wait_for_inputs();
    u32 row = blockIdx.x, start = (blockIdx.y * THREADS + threadIdx.x) * EACH;
    if (start >= args.width) return;
    int count = minimum(args.width - start, u32(EACH));
    float x[EACH], y[EACH];
    load_first(args.left + u64(row) * args.left_stride + start, count, x);
    load_first(args.right + u64(row) * args.right_stride + start, count, y);
#pragma unroll
    for (int i = 0; i < EACH; ++i) x[i] = x[i] + y[i];
    store_first(args.out + u64(row) * args.out_stride + start, count, x);
}
