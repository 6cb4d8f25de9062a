// Puts tokens that were just chosen into the batch that is run next.

constexpr u32 MOST_ROWS = 8;

struct Args {
    // The tokens of the batch.
    u32* tokens;
    // For each row the key of its token, in memory of the host: the token is the lower half.
    const u64* keys[MOST_ROWS];
    u32 rows;
    // Tokens of the vocabulary.
    u32 vocabulary;
};

extern "C" __global__ void follow(const Args args) {
    launch_dependents();
    wait_for_inputs();
    const u32 row = threadIdx.x;
    if (row >= args.rows) return;
    const u32 token = u32(*static_cast<const volatile u64*>(args.keys[row]));
    // Where nothing could be chosen the run is in vain, but it must not read beyond the table.
    args.tokens[row] = token < args.vocabulary ? token : 0;
}
