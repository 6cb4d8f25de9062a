// What the kernel for few activations makes of its sums: what product.cuh says.

using SmallArgs = ProductArgs;

// Rows of a tile that make one output.
constexpr int PARTS = EPILOGUE == SWIGLU ? 2 : 1;

__device__ __forceinline__ const W* tile_row(const SmallArgs& args, u32 output, u32 row) {
    return weight_row(args, output, row);
}

// What is added to a sum, on its way before the sum is there.
struct Ending {
    Addends addends;

    __device__ __forceinline__ void load(const SmallArgs& args, u32 row, u32 output) {
        addends.load(args, row, output);
    }
    __device__ __forceinline__ void finish(const SmallArgs& args, u32 row, u32 output, float sum, float second) const {
        ::finish(args, row, output, sum, second, addends);
    }
};
