// What both softmax kernels share: arguments, and the order of the sum.
//
// In f32: exponentials of the distances from the largest score; their sum in 256 chains (index divided by 4, modulo
// 256), ascending, then as a tree whose levels add the upper half of the chains to the lower half; a division, one
// rounding. Alias: A activations.

struct Args {
    // [rows][input_stride].
    const A* input;
    // [rows][out_stride]; may be `input`.
    A* out;
    u32 rows;
    u32 width;
    u32 input_stride;
    u32 out_stride;
    float scale;
    u32 unused;
};
