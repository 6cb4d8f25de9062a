// What the norm of many rows takes: those of a value.

// As in norm.cu; there is no residual.
struct Args {
    // [rows][input_stride].
    const A* input;
    A* residual;
    // [width].
    const f32* weight;
    // [rows][out_stride].
    A* out;
    u32 width;
    u32 input_stride;
    u32 residual_stride;
    u32 out_stride;
    float eps;
    u32 rows;
};

__device__ __forceinline__ const A* row_of(const Args& args, u32 index) {
    return args.input + u64(index) * args.input_stride;
}

__device__ __forceinline__ void keep(const Args&, u32, u32, const Pack<A>&) {}
