// What the kernel for few activations makes of the projection of queries, keys and values: bias, RoPE of whole heads,
// the store of queries and the write of the cache, each number as qkv.cu computes it.
//
// Aliases besides those of cache.cuh: DIM, the values of a head. Heads have no norms and the cache no scales.

static_assert(!SCALED && DIM % 16 == 0, "what needs a whole head is left to qkv.cu");

// Mirrored by FusedArgs in families/qkv.rs. `features` counts pairs; `out` takes the queries.
struct SmallArgs : ProductArgs {
    BatchView batch;
    CacheLayer cache;
    // [set][context][DIM / 2] each.
    const f32* cos;
    const f32* sin;
    u32 query_heads;
    u32 key_heads;
    u32 context;
    u32 padding;
};

// An output is a pair of dimensions, i and i + PAIRS of a head: eight pairs make a tile.
constexpr int PARTS = 2;
constexpr u32 PAIRS = DIM / 2;

__device__ __forceinline__ const W* tile_row(const SmallArgs& args, u32 output, u32 row) {
    const u32 pair = minimum(output + row % 8, args.features - 1);
    const u32 index = pair / PAIRS * DIM + pair % PAIRS + (row < 8 ? 0 : PAIRS);
    return args.weights + index * args.weight_stride;
}

// What a pair is turned by, and where it goes.
struct Ending {
    float bias[2];
    float cos;
    float sin;
    u32 position;
    // Of the cache, for keys and values.
    u32 page;

    __device__ __forceinline__ void load(const SmallArgs& args, u32 row, u32 output) {
        const u32 head = output / PAIRS, pair = output % PAIRS;
        const Sequence sequence = args.batch.sequences[args.batch.row_sequence[row]];
        position = args.batch.positions[row];
        if (args.bias != nullptr) {
            bias[0] = args.bias[head * DIM + pair];
            bias[1] = args.bias[head * DIM + pair + PAIRS];
        }
        if (head < args.query_heads + args.key_heads) {
            const u64 at = (u64(sequence.rope_set) * args.context + position) * PAIRS + pair;
            cos = args.cos[at];
            sin = args.sin[at];
        }
        if (head >= args.query_heads) {
            page = args.batch.block_tables[sequence.block_table + (position >> args.cache.page_shift)];
        }
    }

    // Stores both numbers of a pair from `to` on.
    template <class T>
    static __device__ __forceinline__ void store(T* to, float first, float second) {
        to[0] = from_f32<T>(first);
        to[PAIRS] = from_f32<T>(second);
    }

    __device__ __forceinline__ void finish(const SmallArgs& args, u32 row, u32 output, float first, float second) const {
        const u32 head = output / PAIRS, pair = output % PAIRS;
        float x = first, y = second;
        if (args.bias != nullptr) {
            x = x + bias[0];
            y = y + bias[1];
        }
        if (head < args.query_heads + args.key_heads) {
            const float turned = mul_add(y, -sin, x * cos);
            y = mul_add(x, sin, y * cos);
            x = turned;
        }
        if (head < args.query_heads) {
            store(static_cast<A*>(args.out) + row * args.out_stride + head * DIM + pair, x, y);
            return;
        }
        const u32 cached = head - args.query_heads;
        const bool is_key = cached < args.key_heads;
        const u32 key = vector_in_page(args.cache, page, is_key ? cached : cached - args.key_heads, position);
        const u32 vector = is_key ? key : key + value_offset(args.cache);
        store(args.cache.values + u64(vector) * args.cache.stride + pair, x, y);
    }
};
