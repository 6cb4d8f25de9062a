// Rows of an input one after the other, for a matrix library that knows no list of rows.

constexpr int THREADS = 256;

struct Args {
    // [..][stride]: rows of whole packs of 16 bytes.
    const uint4* input;
    // [rows]: which of them.
    const u32* wanted;
    // [rows][stride].
    uint4* out;
    // Packs of a row.
    u32 stride;
    u32 unused;
};

extern "C" __global__ __launch_bounds__(THREADS) void library_gather(const Args args) {
    launch_dependents();
    const u32 row = blockIdx.x, pack = blockIdx.y * THREADS + threadIdx.x;
    if (pack >= args.stride) return;
    wait_for_inputs();
    args.out[u64(row) * args.stride + pack] = args.input[u64(args.wanted[row]) * args.stride + pack];
}
