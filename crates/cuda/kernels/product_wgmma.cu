// Tensor-core products of many activations on Hopper (sm_90a): the copy engine brings tiles of both operands to a ring of
// stages in shared memory, and wgmma multiplies them. Sums are formed in the order of product_mma.cuh to the bit: a step
// of wgmma adds like the mma.sync of the same sixteen columns.
//
// Two warps copy, one each operand. The other warpgroups, GROUPS of them, multiply 64 activations each by all
// WEIGHT_ROWS weights of the tile. Blocks stay and take one tile after another; what becomes of the sums of one tile is
// computed while the tensor cores are at work on the first segment of the next.
//
// Aliases besides those of product.cuh: GROUPS, WEIGHT_ROWS, STAGES.

// Columns of a stage, a row of which is 128 bytes.
constexpr int DEPTH = 64;
constexpr int ROW_BYTES = DEPTH * 2;
constexpr int STAGES_OF_SEGMENT = SEGMENT / DEPTH;
constexpr int CONSUMERS = GROUPS * 128;
// The warps that copy are part of a whole warpgroup, so that it can leave its registers to the others.
constexpr int THREADS = CONSUMERS + 128;
// For how many blocks threads leave registers when they start: not so few that one block's consumers could not take more.
constexpr int BLOCKS = GROUPS == 1 ? 2 : 1;
constexpr int COPIER_REGISTERS = 40, CONSUMER_REGISTERS = GROUPS == 1 ? 208 : 232;
constexpr int GROUP_TOKENS = 64, TOKENS = GROUPS * GROUP_TOKENS;
constexpr int PARTS = EPILOGUE == SWIGLU ? 2 : 1;
constexpr int FEATURES = WEIGHT_ROWS / PARTS;
constexpr int INPUT_BYTES = TOKENS * ROW_BYTES, WEIGHT_BYTES = WEIGHT_ROWS * ROW_BYTES;
constexpr int STAGE_BYTES = INPUT_BYTES + WEIGHT_BYTES;
// Token tiles that are taken together, so that blocks at work at the same time share operands in the L2.
constexpr u32 TOGETHER = 8;

// Outputs leave through shared memory in boxes of 64 rows of BOX_BYTES, in ROUNDS that reuse BOXES of them.
constexpr int OUT_BYTES = EPILOGUE == PLAIN ? 4 : 2;
constexpr int BOX_BYTES = FEATURES * OUT_BYTES % 128 == 0 ? 128 : 64;
constexpr int BOX_FEATURES = BOX_BYTES / OUT_BYTES;
constexpr int ROUNDS = EPILOGUE == PLAIN ? 2 : 1;
constexpr int BOXES = FEATURES / BOX_FEATURES / ROUNDS;
constexpr int GROUP_BOXES_BYTES = BOXES * GROUP_TOKENS * BOX_BYTES;
// A round takes as many stages of a segment as there are to hide it behind; each finishes UNITS columns of eight outputs.
constexpr int STAGES_OF_ROUND = STAGES_OF_SEGMENT / ROUNDS;
constexpr int UNITS = FEATURES / 8 / STAGES_OF_SEGMENT;

static_assert(SEGMENT % DEPTH == 0 && FEATURES % (8 * STAGES_OF_SEGMENT) == 0, "stages share the work of a tile evenly");
static_assert(BOXES * ROUNDS * BOX_FEATURES == FEATURES, "whole boxes");

// An opaque description of a matrix and of the boxes in which it is copied, made by the driver.
struct alignas(64) TensorMap {
    u64 words[16];
};

// Mirrored by Args in families/wgmma.rs.
struct Args {
    TensorMap weights;
    TensorMap input;
    TensorMap residual;
    TensorMap out;
    ProductArgs product;
};

// ------------------------------------------------------------------------------------------------------ barriers

__device__ __forceinline__ void barrier_init(u32 barrier, u32 arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}
__device__ __forceinline__ void barrier_arrive(u32 barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}
// Arrives, and lets the barrier wait for so many bytes besides.
__device__ __forceinline__ void barrier_expect(u32 barrier, u32 bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}
// Waits for the end of the phase of this parity.
__device__ __forceinline__ void barrier_wait(u32 barrier, u32 parity) {
    asm volatile(
        "{\n"
        ".reg .pred done;\n"
        "again:\n"
        "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
        "@!done bra again;\n"
        "}\n" ::"r"(barrier), "r"(parity)
        : "memory");
}
__device__ __forceinline__ void group_sync(u32 group) { asm volatile("bar.sync %0, 128;" ::"r"(group + 1) : "memory"); }

// -------------------------------------------------------------------------------------------------------- copies

__device__ __forceinline__ void load_box(u32 shared, const TensorMap& map, u32 column, u32 row, u32 barrier) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::"r"(
            shared),
        "l"(&map), "r"(column), "r"(row), "r"(barrier)
        : "memory");
}
__device__ __forceinline__ void store_box(const TensorMap& map, u32 column, u32 row, u32 shared) {
    asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%1, %2}], [%3];" ::"l"(&map), "r"(column),
                 "r"(row), "r"(shared)
                 : "memory");
}
__device__ __forceinline__ void stores_commit() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }
// Waits until this thread's stores have read shared memory.
__device__ __forceinline__ void stores_wait_read() { asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory"); }
__device__ __forceinline__ void stores_wait() { asm volatile("cp.async.bulk.wait_group 0;" ::: "memory"); }
// What this thread wrote to shared memory is there for the copy engine.
__device__ __forceinline__ void fence_copies() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// --------------------------------------------------------------------------------------------------------- wgmma

using Sums = float[WEIGHT_ROWS / 2];

__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// Waits until at most PENDING of the latest groups are under way.
template <int PENDING>
__device__ __forceinline__ void wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}
// Waits for all, whose sums may be read then: the compiler sees no other reason not to read them before.
__device__ __forceinline__ void wgmma_wait(Sums& sums) {
    wgmma_wait<0>();
#pragma unroll
    for (int i = 0; i < WEIGHT_ROWS / 2; ++i) asm volatile("" : "+f"(sums[i])::"memory");
}

// Rows of 128 bytes whose packs of 16 are permuted as the copy engine does, in groups of eight.
__device__ __forceinline__ u64 matrix_at(u32 address) {
    return u64(address >> 4 & 0x3fff) | u64(1) << 16 | u64(8 * ROW_BYTES >> 4) << 32 | u64(1) << 62;
}

#define REGISTERS_32                                                                                                   \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, "   \
    "%24, %25, %26, %27, %28, %29, %30, %31"
#define REGISTERS_64                                                                                                   \
    REGISTERS_32 ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, "   \
                 "%51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define REGISTERS_96                                                                                                   \
    REGISTERS_64 ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, %80, %81, %82, "   \
                 "%83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"
#define SUMS_4(i) "+f"(c[i]), "+f"(c[i + 1]), "+f"(c[i + 2]), "+f"(c[i + 3])
#define SUMS_16(i) SUMS_4(i), SUMS_4(i + 4), SUMS_4(i + 8), SUMS_4(i + 12)
#define SUMS_32 SUMS_16(0), SUMS_16(16)
#define SUMS_64 SUMS_32, SUMS_16(32), SUMS_16(48)
#define SUMS_96 SUMS_64, SUMS_16(64), SUMS_16(80)

// c = a * b + (add ? c : 0) over sixteen columns of 64 activations and N weights. Of the 16 rows of its warp a thread holds
// in c[4 n ..] columns 8 n + 2 t and the next of row g, then of row g + 8, with g = lane / 4 and t = lane % 4.
template <class T, int N>
struct Step;
#define STEP(T, TYPE, N, REGISTERS, SUMS, A, B, ADD)                                                                   \
    template <>                                                                                                        \
    struct Step<T, N> {                                                                                                \
        static __device__ __forceinline__ void run(float (&c)[N / 2], u64 a, u64 b, u32 add) {                         \
            asm volatile("{\n.reg .pred add;\nsetp.ne.b32 add, " ADD                                                   \
                         ", 0;\nwgmma.mma_async.sync.aligned.m64n" #N "k16.f32." TYPE "." TYPE " {" REGISTERS "}, " A  \
                         ", " B ", add, 1, 1, 0, 0;\n}\n"                                                              \
                         : SUMS                                                                                        \
                         : "l"(a), "l"(b), "r"(add));                                                                  \
        }                                                                                                              \
    };
#define STEPS(T, TYPE)                                                                                                 \
    STEP(T, TYPE, 64, REGISTERS_32, SUMS_32, "%32", "%33", "%34")                                                      \
    STEP(T, TYPE, 128, REGISTERS_64, SUMS_64, "%64", "%65", "%66")                                                     \
    STEP(T, TYPE, 192, REGISTERS_96, SUMS_96, "%96", "%97", "%98")
STEPS(bf16, "bf16")
STEPS(f16, "f16")

// --------------------------------------------------------------------------------------------------------- tiles

struct Tile {
    u32 token;
    u32 feature;
};

struct Tiles {
    u32 along_tokens;
    u32 along_features;
    // Stages of a tile.
    u32 stages;

    __device__ __forceinline__ explicit Tiles(const ProductArgs& args) {
        along_tokens = div_ceil(args.rows, TOKENS);
        along_features = div_ceil(args.features, FEATURES);
        stages = div_ceil(args.columns, DEPTH);
    }
    __device__ __forceinline__ u32 count() const { return along_tokens * along_features; }
    __device__ __forceinline__ Tile at(u32 index) const {
        const u32 band = TOGETHER * along_features;
        const u32 first = index / band * TOGETHER, rest = index % band;
        const u32 tall = minimum(TOGETHER, along_tokens - first);
        return Tile{(first + rest % tall) * TOKENS, rest / tall * FEATURES};
    }
};

// Stages and their barriers, and the place of this thread in them.
struct Ring {
    u32 stages;
    u32 barriers;
    u32 slot = 0;
    u32 parity = 0;

    __device__ __forceinline__ Ring(u32 stages, u32 barriers) : stages(stages), barriers(barriers) {}
    __device__ __forceinline__ u32 input() const { return stages + slot * STAGE_BYTES; }
    __device__ __forceinline__ u32 weights() const { return input() + INPUT_BYTES; }
    // Both operands are there.
    __device__ __forceinline__ u32 full() const { return barriers + slot * 8; }
    // All warps have read them.
    __device__ __forceinline__ u32 empty() const { return barriers + (STAGES + slot) * 8; }
    __device__ __forceinline__ void next() {
        if (++slot == STAGES) {
            slot = 0;
            parity ^= 1;
        }
    }
};

// ------------------------------------------------------------------------------------------------------- copiers

__device__ __forceinline__ void load_weights(const Args& args, const Ring& ring, u32 feature, u32 column) {
    barrier_expect(ring.full(), WEIGHT_BYTES);
    load_box(ring.weights(), args.weights, column, feature, ring.full());
    if constexpr (PARTS == 2) {
        // Gates and ups of the same outputs.
        load_box(ring.weights() + WEIGHT_BYTES / 2, args.weights, column, args.product.features + feature, ring.full());
    }
}

__device__ __forceinline__ void load_input(const Args& args, const Ring& ring, u32 token, u32 column) {
    barrier_expect(ring.full(), INPUT_BYTES);
    load_box(ring.input(), args.input, column, token, ring.full());
}

// Calls load(ring, tile, column) for each stage of this block's tiles, as soon as there is room.
template <class Load>
__device__ __forceinline__ void copy(const Tiles& tiles, Ring ring, Load load) {
    for (u32 index = blockIdx.x; index < tiles.count(); index += gridDim.x) {
        const Tile tile = tiles.at(index);
        for (u32 stage = 0; stage < tiles.stages; ++stage, ring.next()) {
            barrier_wait(ring.empty(), ring.parity ^ 1);
            load(ring, tile, stage * DEPTH);
        }
    }
}

// ----------------------------------------------------------------------------------------------------- consumers

// What becomes of the sums of one warpgroup's part of a tile.
struct Finisher {
    const Args& args;
    u32 boxes;
    u32 residual_full;
    u32 group;
    u32 parity = 0;
    // Of the part whose sums are ready.
    Tile tile{};

    __device__ __forceinline__ Finisher(const Args& args, u32 boxes, u32 barriers, u32 group)
        : args(args), boxes(boxes + group * GROUP_BOXES_BYTES), residual_full(barriers + group * 8), group(group) {}

    __device__ __forceinline__ bool leads() const { return threadIdx.x % 128 == 0; }
    __device__ __forceinline__ bool adds_residual() const { return EPILOGUE == STORE && args.product.residual != nullptr; }

    // Has the residual brought to where the outputs will be.
    __device__ __forceinline__ void request_residual(const Tile& tile) const {
        if (!adds_residual() || !leads()) return;
        stores_wait_read();
        barrier_expect(residual_full, GROUP_BOXES_BYTES);
        for (int box = 0; box < BOXES; ++box) {
            load_box(box_at(box), args.residual, tile.feature + box * BOX_FEATURES, tile.token, residual_full);
        }
    }

    // Finishes what is due behind one stage of a segment. All of them together finish the tile.
    template <int STAGE>
    __device__ __forceinline__ void finish_behind(const Sums& totals) {
        if constexpr (STAGE % STAGES_OF_ROUND == 0) {
            if (adds_residual()) {
                barrier_wait(residual_full, parity);
                parity ^= 1;
            } else {
                if (leads()) stores_wait_read();
                group_sync(group);
            }
        }
#pragma unroll
        for (int i = 0; i < UNITS; ++i) finish_unit<STAGE % STAGES_OF_ROUND * UNITS>(totals, STAGE * UNITS + i, i);
        if constexpr (STAGE % STAGES_OF_ROUND == STAGES_OF_ROUND - 1) {
            fence_copies();
            group_sync(group);
            if (!leads()) return;
            constexpr int FIRST = STAGE / STAGES_OF_ROUND * BOXES;
            for (int box = 0; box < BOXES; ++box) {
                store_box(args.out, tile.feature + (FIRST + box) * BOX_FEATURES, tile.token, box_at(box));
            }
            stores_commit();
        }
    }

private:
    __device__ __forceinline__ u32 box_at(int box) const { return boxes + box * GROUP_TOKENS * BOX_BYTES; }

    // Where the pack of 16 bytes with this number among those of the round lies.
    __device__ __forceinline__ u32 place(u32 row, u32 pack) const {
        constexpr u32 PACKS = BOX_BYTES / 16;
        const u32 within = BOX_BYTES == 128 ? pack % PACKS ^ row % 8 : pack % PACKS ^ row / 2 % 4;
        return box_at(pack / PACKS) + row * BOX_BYTES + within * 16;
    }

    // Eight outputs of each row: number `unit` of the tile, `FIRST + i` of the round.
    template <int FIRST>
    __device__ __forceinline__ void finish_unit(const Sums& totals, int unit, int i) const {
        const u32 lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const u32 row = threadIdx.x % 128 / 32 * 16 + g + half * 8;
            const int at = unit * 4 + half * 2;
            if constexpr (EPILOGUE == PLAIN) {
                const u32 to = place(row, (FIRST + i) * 2 + t / 2) + t % 2 * 8;
                asm volatile("st.shared.v2.f32 [%0], {%1, %2};" ::"r"(to), "f"(totals[at]), "f"(totals[at + 1]) : "memory");
            } else {
                const u32 to = place(row, FIRST + i) + t * 4;
                float values[2];
                if constexpr (EPILOGUE == SWIGLU) {
                    values[0] = silu(totals[at]) * totals[WEIGHT_ROWS / 4 + at];
                    values[1] = silu(totals[at + 1]) * totals[WEIGHT_ROWS / 4 + at + 1];
                } else {
                    const u32 feature = tile.feature + unit * 8 + t * 2;
                    values[0] = scaled(feature, totals[at]);
                    values[1] = scaled(feature + 1, totals[at + 1]);
                    if (adds_residual()) add_residual(to, values);
                }
                asm volatile("st.shared.b32 [%0], %1;" ::"r"(to), "r"(encode_word(values, A{})) : "memory");
            }
        }
    }

    __device__ __forceinline__ float scaled(u32 feature, float sum) const {
        const ProductArgs& product = args.product;
        if (product.bias == nullptr) return sum * product.alpha;
        return mul_add(sum, product.alpha, product.bias[minimum(feature, product.features - 1)]);
    }

    __device__ __forceinline__ static void add_residual(u32 from, float (&values)[2]) {
        u32 word;
        asm volatile("ld.shared.b32 %0, [%1];" : "=r"(word) : "r"(from) : "memory");
        float residual[2];
        decode_word(word, A{}, residual);
        values[0] = values[0] + residual[0];
        values[1] = values[1] + residual[1];
    }
};

// Starts the steps of one stage.
__device__ __forceinline__ void multiply_stage(const Ring& ring, u32 group, bool add, Sums& sums) {
    const u64 input = matrix_at(ring.input() + group * GROUP_TOKENS * ROW_BYTES), weights = matrix_at(ring.weights());
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < DEPTH / 16; ++step) {
        // Sixteen columns are two packs of 16 bytes.
        Step<W, WEIGHT_ROWS>::run(sums, input + step * 2, weights + step * 2, add || step != 0);
    }
    wgmma_commit();
}

__device__ __forceinline__ void release(u32 empty) {
    if (threadIdx.x % 32 == 0) barrier_arrive(empty);
}

// One stage of a segment, and beside it what is due of the tile before.
template <int STAGE>
__device__ __forceinline__ void stage_of_segment(Ring& ring, u32 count, bool finish, u32& last, Finisher& finisher,
                                                 Sums& sums, const Sums& totals) {
    if (STAGE < count) {
        barrier_wait(ring.full(), ring.parity);
        multiply_stage(ring, finisher.group, STAGE != 0, sums);
        if constexpr (STAGE != 0) {
            wgmma_wait<1>();
            release(last);
        }
        last = ring.empty();
        ring.next();
    }
    if (finish) finisher.finish_behind<STAGE>(totals);
}

__device__ __forceinline__ void consume(const Tiles& tiles, Ring ring, Finisher finisher) {
    Sums sums = {}, totals = {};
    bool finish = false;
    for (u32 index = blockIdx.x; index < tiles.count(); index += gridDim.x) {
        Tile tile = tiles.at(index);
        tile.token += finisher.group * GROUP_TOKENS;
        for (u32 first = 0; first < tiles.stages; first += STAGES_OF_SEGMENT) {
            const u32 count = minimum(tiles.stages - first, u32(STAGES_OF_SEGMENT));
            u32 last = 0;
            static_assert(STAGES_OF_SEGMENT == 4, "written out");
            stage_of_segment<0>(ring, count, finish, last, finisher, sums, totals);
            stage_of_segment<1>(ring, count, finish, last, finisher, sums, totals);
            stage_of_segment<2>(ring, count, finish, last, finisher, sums, totals);
            stage_of_segment<3>(ring, count, finish, last, finisher, sums, totals);
            finish = false;
            wgmma_wait(sums);
            release(last);
#pragma unroll
            for (int i = 0; i < WEIGHT_ROWS / 2; ++i) totals[i] = (first == 0 ? 0.0f : totals[i]) + sums[i];
            if (first == 0) finisher.request_residual(tile);
        }
        finisher.tile = tile;
        finish = true;
    }
    finisher.finish_behind<0>(totals);
    finisher.finish_behind<1>(totals);
    finisher.finish_behind<2>(totals);
    finisher.finish_behind<3>(totals);
    if (finisher.leads()) stores_wait();
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) product_wgmma(const __grid_constant__ Args args) {
    extern __shared__ __align__(1024) u8 shared[];
    launch_dependents();
    const u32 stages = shared_address(shared), boxes = stages + STAGES * STAGE_BYTES;
    const u32 barriers = boxes + GROUPS * GROUP_BOXES_BYTES;
    const Ring ring(stages, barriers);
    if (threadIdx.x == 0) {
        for (int i = 0; i < STAGES; ++i) {
            barrier_init(barriers + i * 8, 2);
            barrier_init(barriers + (STAGES + i) * 8, CONSUMERS / 32);
        }
        for (int i = 0; i < GROUPS; ++i) barrier_init(barriers + (2 * STAGES + i) * 8, 1);
        fence_copies();
    }
    __syncthreads();
    const Tiles tiles(args.product);
    if (threadIdx.x >= CONSUMERS) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(COPIER_REGISTERS));
        if (threadIdx.x == CONSUMERS) {
            copy(tiles, ring, [&](const Ring& ring, const Tile& tile, u32 column) {
                load_weights(args, ring, tile.feature, column);
            });
        } else if (threadIdx.x == CONSUMERS + 32) {
            wait_for_inputs();
            copy(tiles, ring, [&](const Ring& ring, const Tile& tile, u32 column) {
                load_input(args, ring, tile.token, column);
            });
        }
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(CONSUMER_REGISTERS));
        wait_for_inputs();
        consume(tiles, ring, Finisher(args, boxes, barriers + 2 * STAGES * 8, threadIdx.x / 128));
    }
}
