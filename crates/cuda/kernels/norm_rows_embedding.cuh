// What the norm behind an embedding takes: the table's rows of tokens, which are the residual stream as they are.

// Mirrored by EmbeddedArgs in families/norm.rs.
struct Args {
    BatchView batch;
    // [vocabulary][table_stride], in the format of activations.
    const A* table;
    // [rows][stream_stride].
    A* stream;
    // [width].
    const f32* weight;
    // [rows][out_stride].
    A* out;
    u32 width;
    u32 table_stride;
    u32 stream_stride;
    u32 out_stride;
    float eps;
    u32 rows;
};

__device__ __forceinline__ const A* row_of(const Args& args, u32 index) {
    return args.table + u64(args.batch.tokens[index]) * args.table_stride;
}

// A pack of a row, which tables and values pad alike.
__device__ __forceinline__ void keep(const Args& args, u32 index, u32 at, const Pack<A>& pack) {
    store_few(args.stream + u64(index) * args.stream_stride + at, pack);
}
