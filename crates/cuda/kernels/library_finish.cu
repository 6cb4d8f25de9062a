// What becomes of sums that a matrix library left in f32: as product.cuh finishes its own, with the same bits for the
// same sums. A block takes neighbouring outputs of one row.

constexpr int THREADS = 256;

struct Args {
    // Weights and input are not read.
    ProductArgs product;
    // [rows][sum_stride]: one sum for each row of the weights.
    const f32* sums;
    u64 sum_stride;
};

extern "C" __global__ __launch_bounds__(THREADS) void library_finish(const Args args) {
    launch_dependents();
    const u32 row = blockIdx.x, feature = blockIdx.y * THREADS + threadIdx.x;
    if (feature >= args.product.features) return;
    wait_for_inputs();
    const f32* sums = args.sums + row * args.sum_stride;
    if constexpr (EPILOGUE == SWIGLU) {
        finish(args.product, row, feature, sums[feature], sums[args.product.features + feature]);
    } else {
        finish(args.product, row, feature, sums[feature]);
    }
}
