// What product_wgmma.cu makes of the projection of queries, keys and values: bias, RoPE of whole heads, the store of queries
// and the write of the cache, each number as qkv.cu computes it. A tile has both numbers of each pair, as sums of one thread: it is
// of whole heads, or of eights of pairs, each with its first numbers before the second ones.
//
// Aliases besides those of cache.cuh: DIM, the values of a head. Heads have no norms and the cache no scales.

constexpr int PAIRS = DIM / 2, EIGHTS = PAIRS / 8;
constexpr bool SPLIT_HEADS = FEATURES % DIM != 0;
// Units are eight pairs each, and stages of a segment share them.
constexpr int UNITS = FEATURES / 16;
// Heads that a tile has units of, whichever of a head it starts with.
constexpr int HEADS = SPLIT_HEADS ? (UNITS + EIGHTS - 2) / EIGHTS + 1 : FEATURES / DIM;

// The output of the tile that is the first number of a unit's first pair, and how far behind it the second number is.
__device__ constexpr int first_of(int unit) { return SPLIT_HEADS ? unit * 16 : unit / EIGHTS * DIM + unit % EIGHTS * 8; }
constexpr int SECOND = SPLIT_HEADS ? 8 : PAIRS;

// Those of all heads that are turned alike are finished one after another: as which a unit is, and which is the one of a number.
__device__ constexpr int number_of(int unit) {
    const int alike = unit % EIGHTS, longer = UNITS % EIGHTS;
    return alike * (UNITS / EIGHTS) + (alike < longer ? alike : longer) + unit / EIGHTS;
}
__device__ constexpr int unit_at(int number) {
    int unit = 0;
    while (number_of(unit) != number) ++unit;
    return unit;
}

static_assert(!SCALED && PAIRS % 8 == 0 && FEATURES % 16 == 0, "eights of pairs");
static_assert(sizeof(C) == 2, "queries and the cache take equally many bytes");

// What is known of a row: what its pairs are turned by, in rows of the tables, and the vector of its first key, for
// head zero. A tile's are noted in shared memory, and its biases.
struct Note {
    u32 turn;
    u32 vector;
};
// A warp gathers the outputs of its sixteen rows, padded such that rows lie in different banks.
constexpr int OUT_ROW_BYTES = FEATURES * 2 + 16, WARP_OUT_BYTES = 16 * OUT_ROW_BYTES;
constexpr int OUT_BYTES = CONSUMERS / 32 * WARP_OUT_BYTES, NOTES_BYTES = TOKENS * sizeof(Note);
constexpr int EPILOGUE_BYTES = OUT_BYTES + NOTES_BYTES + FEATURES * sizeof(f32);

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

// Mirrored by QkvArgs in families/wgmma.rs.
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

// Where tiles begin in the middle of heads: brings the weights of a stage, unit by unit.
__device__ __forceinline__ void load_units(const Args& args, u32 shared, u32 feature, u32 column, u32 barrier) {
    for (u32 unit = feature / 16; unit < feature / 16 + UNITS; ++unit, shared += 16 * ROW_BYTES) {
        load_pairs(shared, args.weights, column, unit % EIGHTS * 8, unit / EIGHTS, barrier);
    }
}

// The output that is this one of a tile.
__device__ __forceinline__ u32 output_at(const OutputTile& tile, u32 number) {
    if (!SPLIT_HEADS) return tile.feature + number;
    const u32 unit = (tile.feature + number) / 16;
    return unit / EIGHTS * DIM + number / 8 % 2 * PAIRS + unit % EIGHTS * 8 + number % 8;
}

// Notes what the epilogue of each tile needs, by one warp.
__device__ __forceinline__ void prepare(const Args& args, const Tiles& tiles, u32 epilogue, u32 barriers) {
    const QkvArgs& product = args.product;
    const u32 lane = threadIdx.x % 32, notes = epilogue + OUT_BYTES, biases = notes + NOTES_BYTES;
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
        for (u32 i = lane; i < FEATURES; i += 32) {
            // Minus zero leaves what it is added to as it is.
            float bias = -0.0f;
            if (product.bias != nullptr) bias = product.bias[minimum(output_at(tile, i), product.features - 1)];
            asm volatile("st.shared.f32 [%0], %1;" ::"r"(biases + i * 4), "f"(bias) : "memory");
        }
        barrier_arrive(notes_full(barriers));
    }
}

// All units are finished behind the first segment of the next tile.
constexpr int LATE_UNITS = 0;
using LateSums = float[1];

// What becomes of the sums of one warpgroup's part of a tile.
struct Finisher {
    const Args& args;
    u32 epilogue;
    u32 barriers;
    u32 group;
    // Read once: instructions that read arguments would be as many as those that compute.
    u32 query_heads;
    u32 turned_heads;
    u32 parity = 0;
    // Of the part whose sums are ready.
    OutputTile tile{};

    __device__ __forceinline__ Finisher(const Args& args, u32 epilogue, u32 barriers, u32 group)
        : args(args), epilogue(epilogue), barriers(barriers), group(group), query_heads(args.product.query_heads),
          turned_heads(args.product.query_heads + args.product.key_heads) {}

    __device__ __forceinline__ void begin(const OutputTile&) const {}
    __device__ __forceinline__ void end() const {}
    __device__ __forceinline__ static void set_aside(const Sums&, LateSums&) {}
    template <int STAGE>
    __device__ __forceinline__ void finish_late_behind(const LateSums&) const {}
    __device__ __forceinline__ void finish_late(const LateSums&) const {}

    // Finishes what is due behind one stage of a segment. All of them together finish the tile.
    template <int STAGE>
    __device__ __forceinline__ void finish_behind(const Sums& totals) {
        if constexpr (STAGE == 0) wait_for_notes();
        constexpr int FIRST = STAGE * UNITS / STAGES_OF_SEGMENT;
        finish_units<FIRST, (STAGE + 1) * UNITS / STAGES_OF_SEGMENT - FIRST>(totals);
        if constexpr (STAGE == STAGES_OF_SEGMENT - 1) store_heads();
    }

    // Finishes a tile behind which there is none: what all of its pairs are turned by is on its way at once.
    __device__ __forceinline__ void finish(const Sums& totals) {
        wait_for_notes();
        finish_units<0, UNITS>(totals);
        store_heads();
    }

private:
    // What two neighbouring pairs are turned by.
    struct Turn {
        float cos[2];
        float sin[2];
    };

    __device__ __forceinline__ void wait_for_notes() {
        barrier_wait(notes_full(barriers), parity);
        parity ^= 1;
    }

    // Those of these numbers.
    template <int FIRST, int COUNT>
    __device__ __forceinline__ void finish_units(const Sums& totals) const {
        constexpr int TURN = unit_at(FIRST) % EIGHTS, TURNS = unit_at(FIRST + COUNT - 1) % EIGHTS - TURN + 1;
        Turn turns[2][TURNS];
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const Note note = load_note(row_of_warp(half));
#pragma unroll
            for (int i = 0; i < TURNS; ++i) turns[half][i] = load_turn(note, (first_eight() + TURN + i) % EIGHTS);
        }
#pragma unroll
        for (int unit = 0; unit < UNITS; ++unit) {
            if (number_of(unit) < FIRST || number_of(unit) >= FIRST + COUNT) continue;
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                finish_pairs(totals, unit, half, turns[half][unit % EIGHTS - TURN]);
            }
        }
    }

    __device__ __forceinline__ void store_heads() const {
        __syncwarp();
#pragma unroll
        for (int head = 0; head < HEADS; ++head) store_head(head);
        __syncwarp();
        if (threadIdx.x % 32 == 0) barrier_arrive(notes_empty(barriers));
    }

    __device__ __forceinline__ u32 notes() const { return epilogue + OUT_BYTES; }
    // Of the sixteen of its warp.
    __device__ __forceinline__ static u32 row_of_warp(int half) { return threadIdx.x % 32 / 4 + half * 8; }
    __device__ __forceinline__ static u32 first_row_of_warp() { return threadIdx.x / 32 * 16; }
    __device__ __forceinline__ u32 out_row(u32 row) const { return epilogue + (first_row_of_warp() + row) * OUT_ROW_BYTES; }

    // Which eight of its head the tile's first unit is.
    __device__ __forceinline__ u32 first_eight() const { return SPLIT_HEADS ? tile.feature / 16 % EIGHTS : 0; }
    // The first of this thread's two pairs among eight.
    __device__ __forceinline__ static u32 my_pair() { return threadIdx.x % 4 * 2; }

    __device__ __forceinline__ Note load_note(u32 row_of_warp) const {
        Note note;
        asm volatile("ld.shared.v2.b32 {%0, %1}, [%2];"
                     : "=r"(note.turn), "=r"(note.vector)
                     : "r"(notes() + (first_row_of_warp() + row_of_warp) * u32(sizeof(Note)))
                     : "memory");
        return note;
    }

    __device__ __forceinline__ Turn load_turn(Note note, u32 eight) const {
        const u64 at = u64(note.turn) * PAIRS + eight * 8 + my_pair();
        Turn turn;
        decode(load_few<f32, 2>(args.product.cos + at), turn.cos);
        decode(load_few<f32, 2>(args.product.sin + at), turn.sin);
        return turn;
    }

    // Two pairs of a row of one unit.
    __device__ __forceinline__ void finish_pairs(const Sums& totals, int unit, int half, const Turn& turn) const {
        const int first = first_of(unit) / 2 + half * 2, second = first + SECOND / 2;
        float x[2] = {totals[first], totals[first + 1]}, y[2] = {totals[second], totals[second + 1]};
        const u32 at = first_of(unit) + my_pair(), head = (tile.feature / 16 + unit) / EIGHTS;
        add_bias(at, x);
        add_bias(at + SECOND, y);
        const bool turns = head < turned_heads;
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            const float turned = mul_add(y[i], -turn.sin[i], x[i] * turn.cos[i]);
            const float other = mul_add(x[i], turn.sin[i], y[i] * turn.cos[i]);
            x[i] = turns ? turned : x[i];
            y[i] = turns ? other : y[i];
        }
        const u32 to = out_row(row_of_warp(half)) + at * 2;
        const bool query = head < query_heads;
        store_two(to, query ? encode_word(x, A{}) : encode_word(x, C{}));
        store_two(to + SECOND * 2, query ? encode_word(y, A{}) : encode_word(y, C{}));
    }

    __device__ __forceinline__ static void store_two(u32 to, u32 word) {
        asm volatile("st.shared.b32 [%0], %1;" ::"r"(to), "r"(word) : "memory");
    }

    // Brings the warp's rows of one head of the tile to where they belong, neighbouring lanes neighbouring packs.
    __device__ __forceinline__ void store_head(int head_of_tile) const {
        constexpr u32 PACKS = DIM * 2 / 16, AT_ONCE = 32 / PACKS;
        const u32 lane = threadIdx.x % 32, pack = lane % PACKS;
        // A pack is a unit's first or second numbers.
        const u32 unit = head_of_tile * EIGHTS + pack % EIGHTS - first_eight();
        if (SPLIT_HEADS && unit >= UNITS) return;
        const u32 from = SPLIT_HEADS ? unit * 16 + pack / EIGHTS * 8 : head_of_tile * DIM + pack * 8;
#pragma unroll 1
        for (u32 first = 0; first < 16; first += AT_ONCE) {
            const u32 row = first + lane / PACKS;
            if (lane >= AT_ONCE * PACKS || row >= 16) continue;
            uint4 bits;
            asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
                         : "=r"(bits.x), "=r"(bits.y), "=r"(bits.z), "=r"(bits.w)
                         : "r"(out_row(row) + from * 2)
                         : "memory");
            u16* to = row_address(head_of_tile, row);
            if (to != nullptr) *reinterpret_cast<uint4*>(to + pack * 8) = bits;
        }
    }

    // Where a row of a head goes, if there is such a row and head.
    __device__ __forceinline__ u16* row_address(int head_of_tile, u32 row_of_warp) const {
        const QkvArgs& product = args.product;
        const u32 head = tile.feature / DIM + head_of_tile;
        const u32 row = tile.token + first_row_of_warp() % GROUP_TOKENS + row_of_warp;
        if (row >= product.rows || head >= product.query_heads + 2 * product.key_heads) return nullptr;
        if (head < product.query_heads) {
            return reinterpret_cast<u16*>(static_cast<A*>(product.out) + row * product.out_stride + head * DIM);
        }
        const u32 cached = head - product.query_heads;
        // Keys and values of the heads of a page lie one after another.
        const u32 before = cached < product.key_heads ? 2 * cached : 2 * (cached - product.key_heads) + 1;
        const u32 vector = load_note(row_of_warp).vector + before * value_offset(product.cache);
        return reinterpret_cast<u16*>(product.cache.values + u64(vector) * product.cache.stride);
    }

    __device__ __forceinline__ void add_bias(u32 feature, float (&x)[2]) const {
        const u32 at = notes() + NOTES_BYTES + feature * 4;
        float bias[2];
        asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(bias[0]), "=f"(bias[1]) : "r"(at) : "memory");
        x[0] = x[0] + bias[0];
        x[1] = x[1] + bias[1];
    }
};
