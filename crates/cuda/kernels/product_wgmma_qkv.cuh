// What product_wgmma.cu makes of the projection of queries, keys and values: bias, RoPE of whole heads, the store of queries
// and the write of the cache, each number as qkv.cu computes it. A tile is of whole heads, so that both numbers of a pair are
// sums of one thread.
//
// Aliases besides those of cache.cuh: DIM, the values of a head. Heads have no norms and the cache no scales.

constexpr int PAIRS = DIM / 2, HEADS = FEATURES / DIM;
// Stages of a segment finish UNITS times eight pairs each; those of all heads that are turned alike are neighbours.
constexpr int UNITS = FEATURES / 16 / STAGES_OF_SEGMENT;

static_assert(!SCALED && PAIRS % 8 == 0 && FEATURES % DIM == 0, "pairs of whole heads");

// What is known of a row: what its pairs are turned by, in rows of the tables, and the vector of its first key, for
// head zero. A tile's are noted in shared memory, and its biases.
struct Note {
    u32 turn;
    u32 vector;
};
constexpr int EPILOGUE_BYTES = TOKENS * sizeof(Note) + FEATURES * sizeof(f32);

// Mirrored by FusedArgs in families/qkv.rs. `out` takes the queries.
struct QkvArgs : ProductArgs {
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

// Mirrored by WgmmaArgs in families/qkv.rs.
struct Args {
    TensorMap weights;
    TensorMap input;
    QkvArgs product;
};

__device__ __forceinline__ u32 notes_full(u32 barriers) { return barriers; }
__device__ __forceinline__ u32 notes_empty(u32 barriers) { return barriers + 8; }

__device__ __forceinline__ void init_epilogue(u32 barriers) {
    barrier_init(notes_full(barriers), 32);
    barrier_init(notes_empty(barriers), CONSUMERS / 32);
}

__device__ __forceinline__ Note note_of(const QkvArgs& args, u32 row) {
    const Sequence sequence = args.batch.sequences[args.batch.row_sequence[row]];
    const u32 position = args.batch.positions[row];
    return Note{sequence.rope_set * args.context + position,
                key_vector(args.cache, args.batch.block_tables + sequence.block_table, 0, position)};
}

// Notes what the epilogue of each tile needs, by one warp.
__device__ __forceinline__ void prepare(const Args& args, const Tiles& tiles, u32 notes, u32 barriers) {
    const QkvArgs& product = args.product;
    const u32 lane = threadIdx.x % 32, biases = notes + TOKENS * sizeof(Note);
    u32 parity = 1;
    for (u32 index = blockIdx.x; index < tiles.count(); index += gridDim.x, parity ^= 1) {
        const OutputTile tile = tiles.at(index);
        barrier_wait(notes_empty(barriers), parity);
#pragma unroll
        for (u32 i = lane; i < TOKENS; i += 32) {
            const Note note = note_of(product, minimum(tile.token + i, product.rows - 1));
            asm volatile("st.shared.v2.b32 [%0], {%1, %2};" ::"r"(notes + i * u32(sizeof(Note))), "r"(note.turn),
                         "r"(note.vector)
                         : "memory");
        }
        for (u32 i = lane; i < FEATURES && product.bias != nullptr; i += 32) {
            const float bias = product.bias[minimum(tile.feature + i, product.features - 1)];
            asm volatile("st.shared.f32 [%0], %1;" ::"r"(biases + i * 4), "f"(bias) : "memory");
        }
        barrier_arrive(notes_full(barriers));
    }
}

// What becomes of the sums of one warpgroup's part of a tile.
struct Finisher {
    const Args& args;
    u32 notes;
    u32 barriers;
    u32 group;
    u32 parity = 0;
    // Of the part whose sums are ready.
    OutputTile tile{};

    __device__ __forceinline__ Finisher(const Args& args, u32 notes, u32 barriers, u32 group)
        : args(args), notes(notes), barriers(barriers), group(group) {}

    __device__ __forceinline__ void begin(const OutputTile&) const {}
    __device__ __forceinline__ void end() const {}

    // Finishes what is due behind one stage of a segment. All of them together finish the tile.
    template <int STAGE>
    __device__ __forceinline__ void finish_behind(const Sums& totals) {
        if constexpr (STAGE == 0) {
            barrier_wait(notes_full(barriers), parity);
            parity ^= 1;
        }
        constexpr int FIRST = STAGE * UNITS / HEADS, LAST = (STAGE * UNITS + UNITS - 1) / HEADS;
        Turn turns[2][LAST - FIRST + 1];
        Note note[2];
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            note[half] = load_note(half);
#pragma unroll
            for (int i = 0; i <= LAST - FIRST; ++i) turns[half][i] = load_turn(note[half], FIRST + i);
        }
#pragma unroll
        for (int i = STAGE * UNITS; i < STAGE * UNITS + UNITS; ++i) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                finish_pairs(totals, i % HEADS, i / HEADS, half, note[half], turns[half][i / HEADS - FIRST]);
            }
        }
        if constexpr (STAGE == STAGES_OF_SEGMENT - 1) {
            __syncwarp();
            if (threadIdx.x % 32 == 0) barrier_arrive(notes_empty(barriers));
        }
    }

private:
    // What two neighbouring pairs are turned by.
    struct Turn {
        float cos[2];
        float sin[2];
    };

    __device__ __forceinline__ u32 row_of(int half) const {
        return group * GROUP_TOKENS + threadIdx.x % 128 / 32 * 16 + threadIdx.x % 32 / 4 + half * 8;
    }

    // The first of this thread's two pairs among the eight with this number, within the head.
    __device__ __forceinline__ static u32 pair_of(int eight) { return eight * 8 + threadIdx.x % 4 * 2; }

    __device__ __forceinline__ Note load_note(int half) const {
        Note note;
        asm volatile("ld.shared.v2.b32 {%0, %1}, [%2];"
                     : "=r"(note.turn), "=r"(note.vector)
                     : "r"(notes + row_of(half) * u32(sizeof(Note)))
                     : "memory");
        return note;
    }

    __device__ __forceinline__ Turn load_turn(Note note, int eight) const {
        const u64 at = u64(note.turn) * PAIRS + pair_of(eight);
        Turn turn;
        decode(load_few<f32, 2>(args.product.cos + at), turn.cos);
        decode(load_few<f32, 2>(args.product.sin + at), turn.sin);
        return turn;
    }

    // Two pairs of a row of one head of the tile.
    __device__ __forceinline__ void finish_pairs(const Sums& totals, int head_of_tile, int eight, int half, Note note,
                                                 const Turn& turn) const {
        const QkvArgs& product = args.product;
        const int first = (head_of_tile * DIM / 8 + eight) * 4 + half * 2, second = first + PAIRS / 2;
        float x[2] = {totals[first], totals[first + 1]}, y[2] = {totals[second], totals[second + 1]};
        const u32 pair = pair_of(eight), head = tile.feature / DIM + head_of_tile;
        if (product.bias != nullptr) {
            add_bias(head_of_tile * DIM + pair, x);
            add_bias(head_of_tile * DIM + pair + PAIRS, y);
        }
        if (head < product.query_heads + product.key_heads) {
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                const float turned = mul_add(y[i], -turn.sin[i], x[i] * turn.cos[i]);
                y[i] = mul_add(x[i], turn.sin[i], y[i] * turn.cos[i]);
                x[i] = turned;
            }
        }
        const u32 row = tile.token + row_of(half) - group * GROUP_TOKENS;
        if (row >= product.rows) return;
        if (head < product.query_heads) {
            store(static_cast<A*>(product.out) + row * product.out_stride + head * DIM + pair, x, y);
        } else if (head < product.query_heads + 2 * product.key_heads) {
            const u32 cached = head - product.query_heads;
            const bool is_key = cached < product.key_heads;
            // Keys and values of the heads of a page lie one after another.
            const u32 before = is_key ? 2 * cached : 2 * (cached - product.key_heads) + 1;
            const u32 vector = note.vector + before * value_offset(product.cache);
            store(product.cache.values + u64(vector) * product.cache.stride + pair, x, y);
        }
    }

    __device__ __forceinline__ void add_bias(u32 feature, float (&x)[2]) const {
        const u32 at = notes + u32(TOKENS * sizeof(Note)) + feature * 4;
        float bias[2];
        asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(bias[0]), "=f"(bias[1]) : "r"(at) : "memory");
        x[0] = x[0] + bias[0];
        x[1] = x[1] + bias[1];
    }

    // Stores the numbers of two pairs from `to` on.
    template <class T>
    __device__ __forceinline__ static void store(T* to, const float (&first)[2], const float (&second)[2]) {
        store_few(to, encode_two<T>(first));
        store_few(to + PAIRS, encode_two<T>(second));
    }

    template <class T>
    __device__ __forceinline__ static Few<T, 2> encode_two(const float (&x)[2]) {
        if constexpr (sizeof(T) == 1) {
            Few<T, 2> codes;
            codes.raw.set_word(0, from_f32<T>(x[0]).bits | from_f32<T>(x[1]).bits << 8);
            return codes;
        } else {
            return encode<T>(x);
        }
    }
};
