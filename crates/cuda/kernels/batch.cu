// Brings a batch from the host's memory, where it is laid out, to the device's. The host's is far away: each thread has one
// pack of 16 bytes, so that all are on their way at a time.

constexpr int THREADS = 128;

struct Args {
    const uint4* host;
    uint4* device;
    u32 packs;
    u32 unused;
};

extern "C" __global__ __launch_bounds__(THREADS) void bring(const Args args) {
    launch_dependents();
    wait_for_inputs();
    const u32 at = blockIdx.x * THREADS + threadIdx.x;
    if (at < args.packs) args.device[at] = args.host[at];
}
