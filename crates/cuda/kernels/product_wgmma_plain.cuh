// What product_wgmma.cu makes of its sums where they become the rows of one matrix: they leave through shared memory, in
// boxes that the copy engine stores.

constexpr int OUT_BYTES = EPILOGUE == PLAIN ? 4 : 2;
// Boxes are of 64 rows of BOX_BYTES. ROUNDS reuse BOXES of them. Those of 64 and of 128 bytes are permuted; where they do
// not make up a round, it is one box as it is.
constexpr int ROUNDS = EPILOGUE == PLAIN ? 2 : 1;
constexpr int ROUND_BYTES = FEATURES * OUT_BYTES / ROUNDS;
constexpr bool PERMUTED = ROUND_BYTES % 64 == 0;
constexpr int BOX_BYTES = !PERMUTED ? ROUND_BYTES : ROUND_BYTES % 128 == 0 ? 128 : 64;
constexpr int BOX_FEATURES = BOX_BYTES / OUT_BYTES;
constexpr int BOXES = ROUND_BYTES / BOX_BYTES;
constexpr int GROUP_BOXES_BYTES = BOXES * GROUP_TOKENS * BOX_BYTES;
// A round takes as many stages of a segment as there are to hide it behind. They share its UNITS, columns of eight outputs.
constexpr int STAGES_OF_ROUND = STAGES_OF_SEGMENT / ROUNDS;
constexpr int UNITS = FEATURES / 8;
// With SwiGLU those of the widest tiles take longer than a segment does. So many of the last ones as there are registers for
// are late: their sums are set aside, and finished behind the second segment.
constexpr int LATE_UNITS = EPILOGUE != SWIGLU ? 0 : WEIGHT_ROWS == 160 ? 3 : WEIGHT_ROWS == 192 ? 2 : 0;
constexpr int FIRST_LATE = UNITS - LATE_UNITS;
// Sums of late units: gates, then ups.
using LateSums = float[LATE_UNITS > 0 ? LATE_UNITS * 8 : 1];

static_assert(UNITS % ROUNDS == 0 && BOX_BYTES % 16 == 0, "rounds of whole units, boxes of whole packs");
static_assert(LATE_UNITS == 0 || ROUNDS == 1, "stored behind the second segment");

// Shared memory before the barriers, of which there is one for each warpgroup.
constexpr int EPILOGUE_BYTES = GROUPS * GROUP_BOXES_BYTES;

// Mirrored by Args in families/wgmma.rs.
struct Args {
    TensorMap weights;
    TensorMap input;
    TensorMap residual;
    TensorMap out;
    ProductArgs product;
};

__device__ __forceinline__ void init_epilogue(u32 barriers) {
    for (int i = 0; i < GROUPS; ++i) barrier_init(barriers + i * 8, 1);
}

// Weights are copied by rows.
constexpr bool SPLIT_HEADS = false;
__device__ __forceinline__ void load_units(const Args&, u32, u32, u32, u32) {}

// Nothing is to be prepared for the epilogue.
__device__ __forceinline__ void prepare(const Args&, const Tiles&, u32, u32) {}

// What becomes of the sums of one warpgroup's part of a tile.
struct Finisher {
    const Args& args;
    u32 boxes;
    u32 residual_full;
    u32 group;
    // Read once: instructions that read arguments would be as many as those that compute.
    float alpha;
    bool residual_added;
    u32 parity = 0;
    // Of the part whose sums are ready.
    OutputTile tile{};

    __device__ __forceinline__ Finisher(const Args& args, u32 boxes, u32 barriers, u32 group)
        : args(args), boxes(boxes + group * GROUP_BOXES_BYTES), residual_full(barriers + group * 8), group(group), alpha(args.product.alpha),
          residual_added(EPILOGUE == STORE && args.product.residual != nullptr) {}

    // Has the residual brought to where the outputs will be.
    __device__ __forceinline__ void begin(const OutputTile& tile) const {
        if (!residual_added || !leads()) return;
        stores_wait_read();
        barrier_expect(residual_full, GROUP_BOXES_BYTES);
        for (int box = 0; box < BOXES; ++box) {
            load_box(box_at(box), args.residual, tile.feature + box * BOX_FEATURES, tile.token, residual_full);
        }
    }

    // Finishes what is due behind one stage of a segment. All of them together finish the tile, up to its late units.
    template <int STAGE>
    __device__ __forceinline__ void finish_behind(const Sums& totals) {
        if constexpr (STAGE % STAGES_OF_ROUND == 0) {
            if (residual_added) {
                barrier_wait(residual_full, parity);
                parity ^= 1;
            } else {
                if (leads()) stores_wait_read();
                group_sync(group);
            }
        }
        constexpr int FIRST = STAGE * FIRST_LATE / STAGES_OF_SEGMENT, END = (STAGE + 1) * FIRST_LATE / STAGES_OF_SEGMENT;
        constexpr int ROUND = STAGE / STAGES_OF_ROUND;
        finish_units<FIRST, END - FIRST, ROUND>(totals, FIRST);
        if constexpr (LATE_UNITS == 0 && STAGE % STAGES_OF_ROUND == STAGES_OF_ROUND - 1) store_round(ROUND);
    }

    // Sets the sums of late units aside: those of the next tile take their place.
    __device__ __forceinline__ static void set_aside(const Sums& totals, LateSums& late) {
#pragma unroll
        for (int i = 0; i < LATE_UNITS * 4; ++i) {
            late[i] = totals[FIRST_LATE * 4 + i];
            late[LATE_UNITS * 4 + i] = totals[WEIGHT_ROWS / 4 + FIRST_LATE * 4 + i];
        }
    }

    // Finishes what of the late units is due behind one stage. All of them together finish the tile.
    template <int STAGE>
    __device__ __forceinline__ void finish_late_behind(const LateSums& late) const {
        constexpr int FIRST = STAGE * LATE_UNITS / STAGES_OF_SEGMENT, END = (STAGE + 1) * LATE_UNITS / STAGES_OF_SEGMENT;
        if constexpr (END > FIRST) finish_units<FIRST_LATE + FIRST, END - FIRST, 0>(late, FIRST);
        if constexpr (LATE_UNITS > 0 && STAGE == STAGES_OF_SEGMENT - 1) store_round(0);
    }

    // Finishes late units behind which there is no stage.
    __device__ __forceinline__ void finish_late(const LateSums& late) const {
        finish_late_behind<0>(late);
        finish_late_behind<1>(late);
        finish_late_behind<2>(late);
        finish_late_behind<3>(late);
    }

    // Finishes a tile behind which there is none.
    __device__ __forceinline__ void finish(const Sums& totals) {
        finish_behind<0>(totals);
        finish_behind<1>(totals);
        finish_behind<2>(totals);
        finish_behind<3>(totals);
        LateSums late;
        set_aside(totals, late);
        finish_late(late);
    }

    // Waits until all outputs are on their way.
    __device__ __forceinline__ void end() const {
        if (leads()) stores_wait();
    }

private:
    __device__ __forceinline__ bool leads() const { return threadIdx.x % 128 == 0; }
    __device__ __forceinline__ u32 box_at(int box) const { return boxes + box * GROUP_TOKENS * BOX_BYTES; }

    __device__ __forceinline__ void store_round(int round) const {
        fence_copies();
        group_sync(group);
        if (!leads()) return;
        for (int box = 0; box < BOXES; ++box) {
            store_box(args.out, tile.feature + (round * BOXES + box) * BOX_FEATURES, tile.token, box_at(box));
        }
        stores_commit();
    }

    // Where this thread's two outputs of a row's first eight lie: permuted boxes have packs of 16 bytes of eight rows in
    // different banks. They start at multiples of eight rows, so that permutations leave other bits alone.
    __device__ __forceinline__ u32 first_place() const {
        const u32 lane = threadIdx.x % 32, row = threadIdx.x % 128 / 32 * 16 + lane / 4, t = lane % 4;
        const u32 permutation = !PERMUTED ? 0 : BOX_BYTES == 128 ? row % 8 : row / 2 % 4;
        const u32 pack = OUT_BYTES == 4 ? t / 2 : 0, within = OUT_BYTES == 4 ? t % 2 * 8 : t * 4;
        return boxes + row * BOX_BYTES + ((pack ^ permutation) * 16 | within);
    }

    // That of eight further outputs, number `unit` of the round, of this row or the eighth after it.
    __device__ __forceinline__ static u32 place(u32 first, int unit, int half) {
        constexpr int PACKS = BOX_BYTES / 16;
        const int pack = unit * (OUT_BYTES / 2);
        if (!PERMUTED) return first + pack * 16 + half * 8 * BOX_BYTES;
        return (first ^ pack % PACKS * 16) + pack / PACKS * GROUP_TOKENS * BOX_BYTES + half * 8 * BOX_BYTES;
    }

    // Eight outputs of each row for each of COUNT units from FIRST on, which have the sums from that unit on.
    template <int FIRST, int COUNT, int ROUND, int N>
    __device__ __forceinline__ void finish_units(const float (&sums)[N], int unit) const {
        constexpr int PLACE = FIRST - ROUND * UNITS / ROUNDS;
        const u32 to = first_place();
        float biases[COUNT][2];
        if constexpr (EPILOGUE == STORE) load_biases(tile.feature + FIRST * 8, biases);
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            u32 residuals[COUNT] = {};
            if (residual_added) {
#pragma unroll
                for (int i = 0; i < COUNT; ++i) residuals[i] = load_word(place(to, PLACE + i, half));
            }
#pragma unroll
            for (int i = 0; i < COUNT; ++i) {
                finish_eight(sums, unit + i, half, biases[i], residuals[i], place(to, PLACE + i, half));
            }
        }
    }

    // This thread's two of eight outputs of a row.
    template <int N>
    __device__ __forceinline__ void finish_eight(const float (&sums)[N], int unit, int half, const float (&bias)[2],
                                                 u32 residual, u32 to) const {
        const int at = unit * 4 + half * 2;
        if constexpr (EPILOGUE == PLAIN) {
            asm volatile("st.shared.v2.f32 [%0], {%1, %2};" ::"r"(to), "f"(sums[at]), "f"(sums[at + 1]) : "memory");
        } else {
            float values[2];
            if constexpr (EPILOGUE == SWIGLU) {
                values[0] = silu<A>(sums[at]) * sums[N / 2 + at];
                values[1] = silu<A>(sums[at + 1]) * sums[N / 2 + at + 1];
            } else {
                values[0] = mul_add(sums[at], alpha, bias[0]);
                values[1] = mul_add(sums[at + 1], alpha, bias[1]);
                if (residual_added) add_residual(residual, values);
            }
            asm volatile("st.shared.b32 [%0], %1;" ::"r"(to), "r"(encode_word(values, A{})) : "memory");
        }
    }

    __device__ __forceinline__ static u32 load_word(u32 from) {
        u32 word;
        asm volatile("ld.shared.b32 %0, [%1];" : "=r"(word) : "r"(from) : "memory");
        return word;
    }

    // The biases of this thread's outputs, from that with this number on. Where there are none it is minus zero, which leaves
    // what it is added to as it is.
    template <int COUNT>
    __device__ __forceinline__ void load_biases(u32 feature, float (&biases)[COUNT][2]) const {
        const ProductArgs& product = args.product;
#pragma unroll
        for (int i = 0; i < 2 * COUNT; ++i) biases[i / 2][i % 2] = -0.0f;
        if (product.bias == nullptr) return;
#pragma unroll
        for (int i = 0; i < 2 * COUNT; ++i) {
            const u32 mine = feature + i / 2 * 8 + threadIdx.x % 4 * 2 + i % 2;
            biases[i / 2][i % 2] = product.bias[minimum(mine, product.features - 1)];
        }
    }

    __device__ __forceinline__ static void add_residual(u32 word, float (&values)[2]) {
        float residual[2];
        decode_word(word, A{}, residual);
        values[0] = values[0] + residual[0];
        values[1] = values[1] + residual[1];
    }
};
