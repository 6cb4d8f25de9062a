// Token lookup: decoded exactly, rounded once. One row of blocks for each row of the batch.
// Aliases: W table, A activations.

constexpr int THREADS = 128;
constexpr int EACH = 4;

struct Args {
    BatchView batch;
    // [vocabulary][table_stride].
    const W* table;
    // [rows][out_stride].
    A* out;
    u32 width;
    u32 table_stride;
    u32 out_stride;
    u32 unused;
};

extern "C" __global__ __launch_bounds__(THREADS) void embedding(const Args args) {
    launch_dependents();
    wait_for_inputs();
    u32 row = blockIdx.x, start = (blockIdx.y * THREADS + threadIdx.x) * EACH;
    if (start >= args.width) return;
    int count = minimum(args.width - start, u32(EACH));
    float x[EACH];
    load_first(args.table + u64(args.batch.tokens[row]) * args.table_stride + start, count, x);
    store_first(args.out + u64(row) * args.out_stride + start, count, x);
}
