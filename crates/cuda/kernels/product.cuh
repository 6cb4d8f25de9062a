// What all products share: arguments, and what becomes of a sum.
//
// Aliases: W and A (formats of weights and activations), EPILOGUE, RAGGED (whether a row of activations may end within
// 8 columns).

// Values of EPILOGUE.
constexpr int STORE = 0;   // alpha * sum + bias + residual, rounded once to A
constexpr int SWIGLU = 1;  // silu(gate) * up, rounded once to A; weights are `features` gate rows, then as many up rows
constexpr int PLAIN = 2;   // the sum in f32

// Mirrored by ProductArgs in families/products.rs. Strides are in values; rows of weights and input start at
// multiples of 16 bytes, and weights are padded with zeros to the next one.
struct ProductArgs {
    const W* weights;
    const A* input;
    const u32* wanted;  // [rows]: the input rows to use; null for all of them in order
    const f32* bias;    // [features], or null
    const A* residual;  // [rows][features], or null; may be `out`
    void* out;          // [rows][features]
    u64 weight_stride;
    u64 input_stride;
    u64 residual_stride;
    u64 out_stride;
    u32 features;
    u32 columns;
    u32 rows;
    f32 alpha;
};

// The row of the weights that is number `row` of a tile of sixteen whose first output is `feature`. Eight outputs of
// SwiGLU make a tile: their gates, then their ups. Rows beyond the last are the last one again: their sums are not
// stored.
__device__ __forceinline__ const W* weight_row(const ProductArgs& args, u32 feature, u32 row) {
    u32 last = args.features - 1;
    u32 index;
    if constexpr (EPILOGUE == SWIGLU) {
        index = minimum(feature + row % 8, last) + (row < 8 ? 0 : args.features);
    } else {
        index = minimum(feature + row, last);
    }
    return args.weights + index * args.weight_stride;
}

__device__ __forceinline__ const A* input_row(const ProductArgs& args, u32 row) {
    row = minimum(row, args.rows - 1);
    return args.input + (args.wanted == nullptr ? row : args.wanted[row]) * args.input_stride;
}

// COUNT neighbouring activations from column `first` + `ahead` on, zeros beyond the last column.
template <int COUNT>
__device__ __forceinline__ void load_input(const A* row, u32 first, int ahead, u32 columns, float (&x)[COUNT]) {
    constexpr int PART = minimum(COUNT, int(16 / sizeof(A)));
#pragma unroll
    for (int i = 0; i < COUNT; i += PART) {
        float part[PART] = {};
        const u32 start = first + ahead + i;
        const A* address = row + u64(first) + ahead + i;
        if (start < columns) {
            if constexpr (RAGGED) {
                load_first<A>(address, columns - start, part);
            } else {
                decode(load_few<A, PART>(address), part);
            }
        }
#pragma unroll
        for (int j = 0; j < PART; ++j) x[i + j] = part[j];
    }
}

// What is added to a sum; read before the sum is there where that is worth it.
struct Addends {
    float bias;
    float residual;

    __device__ __forceinline__ void load(const ProductArgs& args, u32 row, u32 feature) {
        if constexpr (EPILOGUE == STORE) {
            if (args.bias != nullptr) bias = args.bias[feature];
            if (args.residual != nullptr) residual = to_f32(args.residual[row * args.residual_stride + feature]);
        }
    }
};

// Stores one output. `up` is the second sum of SwiGLU.
__device__ __forceinline__ void finish(const ProductArgs& args, u32 row, u32 feature, float sum, float up,
                                       const Addends& addends) {
    u64 at = row * args.out_stride + feature;
    if constexpr (EPILOGUE == PLAIN) {
        static_cast<f32*>(args.out)[at] = sum;
    } else {
        float value;
        if constexpr (EPILOGUE == SWIGLU) {
            value = silu<A>(sum) * up;
        } else {
            value = args.bias == nullptr ? sum * args.alpha : mul_add(sum, args.alpha, addends.bias);
            if (args.residual != nullptr) value = value + addends.residual;
        }
        static_cast<A*>(args.out)[at] = from_f32<A>(value);
    }
}

__device__ __forceinline__ void finish(const ProductArgs& args, u32 row, u32 feature, float sum, float up = 0.0f) {
    Addends addends = {};
    addends.load(args, row, feature);
    finish(args, row, feature, sum, up, addends);
}
