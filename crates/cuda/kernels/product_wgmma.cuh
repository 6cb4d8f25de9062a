// What tensor-core products of many activations on Hopper (sm_90a) are made of: sizes, barriers, copies, wgmma, and the
// division of the work into tiles.
//
// Aliases besides those of product.cuh: GROUPS, warpgroups that multiply 64 activations each by all WEIGHT_ROWS weights of a
// tile; STAGES of shared memory; CLUSTER, blocks that share an operand, which is one or two; LONE, where each block has one tile.

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
constexpr int GROUP_BYTES = GROUP_TOKENS * ROW_BYTES, INPUT_BYTES = GROUPS * GROUP_BYTES, WEIGHT_BYTES = WEIGHT_ROWS * ROW_BYTES;
constexpr int STAGE_BYTES = INPUT_BYTES + WEIGHT_BYTES;
// Blocks of a cluster share the inputs of lone tiles, else weights.
constexpr bool SHARED_WEIGHTS = CLUSTER == 2 && !LONE, SHARED_INPUT = CLUSTER == 2 && LONE;
// Boxes in which the weights of a stage are copied.
constexpr int WEIGHT_BOXES = PARTS == 2 || SHARED_WEIGHTS ? 2 : 1;
constexpr int WEIGHT_BOX = WEIGHT_ROWS / WEIGHT_BOXES, WEIGHT_BOX_BYTES = WEIGHT_BYTES / WEIGHT_BOXES;
// Token tiles that are taken together, so that blocks at work at the same time share operands in the L2.
constexpr u32 TOGETHER = 8;

static_assert(TOGETHER % CLUSTER == 0 && CLUSTER <= 2, "neighbouring tiles of tokens, a box of weights for each block");
static_assert(!SHARED_INPUT || GROUPS == CLUSTER, "a box of the input for each block");
static_assert(SEGMENT % DEPTH == 0 && FEATURES % 8 == 0 && WEIGHT_BOX % 8 == 0, "whole stages, and eights of outputs");

// An opaque description of a matrix and of the boxes in which it is copied, made by the driver.
struct alignas(64) TensorMap {
    u64 words[16];
};

// ------------------------------------------------------------------------------------------------------ barriers

__device__ __forceinline__ void barrier_init(u32 barrier, u32 arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}
__device__ __forceinline__ void barrier_arrive(u32 barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}
__device__ __forceinline__ void barrier_arrive(u32 barrier, u32 count) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(count) : "memory");
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
// Barriers that this thread initialised are there for the whole cluster when it has synchronised.
__device__ __forceinline__ void fence_barriers() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
// Arrives at the barrier in the same place of another block of the cluster, or of this one.
__device__ __forceinline__ void barrier_arrive_in(u32 barrier, u32 block) {
    asm volatile(
        "{\n"
        ".reg .b32 there;\n"
        "mapa.shared::cluster.u32 there, %0, %1;\n"
        "mbarrier.arrive.shared::cluster.b64 _, [there];\n"
        "}\n" ::"r"(barrier), "r"(block)
        : "memory");
}
__device__ __forceinline__ u32 cluster_rank() {
    u32 rank;
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}
// Waits for all threads of the cluster, whose barriers are there then.
__device__ __forceinline__ void cluster_sync() {
    if constexpr (CLUSTER > 1) {
        __syncwarp();
        asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
    } else {
        __syncthreads();
    }
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
// Copies rows of one head: as many from this pair on, and from its second half on.
__device__ __forceinline__ void load_pairs(u32 shared, const TensorMap& map, u32 column, u32 pair, u32 head, u32 barrier) {
    asm volatile(
        "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, 0, %4}], [%5];" ::"r"(
            shared),
        "l"(&map), "r"(column), "r"(pair), "r"(head), "r"(barrier)
        : "memory");
}
// Copies to the same place in each block of the cluster, at whose barriers its bytes count.
__device__ __forceinline__ void load_box_for_all(u32 shared, const TensorMap& map, u32 column, u32 row, u32 barrier) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1, {%2, "
        "%3}], [%4], %5;" ::"r"(shared),
        "l"(&map), "r"(column), "r"(row), "r"(barrier), "h"(u16((1 << CLUSTER) - 1))
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
// Waits like wgmma_wait<PENDING>() for these sums, which may be read then: the compiler sees no other reason not to read them
// before.
template <int PENDING>
__device__ __forceinline__ void wgmma_wait(Sums& sums) {
    wgmma_wait<PENDING>();
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
#define REGISTERS_56                                                                                                   \
    REGISTERS_32 ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, "   \
                 "%51, %52, %53, %54, %55"
#define REGISTERS_64                                                                                                   \
    REGISTERS_56 ", %56, %57, %58, %59, %60, %61, %62, %63"
#define REGISTERS_72                                                                                                   \
    REGISTERS_64 ", %64, %65, %66, %67, %68, %69, %70, %71"
#define REGISTERS_80                                                                                                   \
    REGISTERS_72 ", %72, %73, %74, %75, %76, %77, %78, %79"
#define REGISTERS_96                                                                                                   \
    REGISTERS_80 ", %80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"
#define SUMS_4(i) "+f"(c[i]), "+f"(c[i + 1]), "+f"(c[i + 2]), "+f"(c[i + 3])
#define SUMS_8(i) SUMS_4(i), SUMS_4(i + 4)
#define SUMS_16(i) SUMS_8(i), SUMS_8(i + 8)
#define SUMS_32 SUMS_16(0), SUMS_16(16)
#define SUMS_56 SUMS_32, SUMS_16(32), SUMS_8(48)
#define SUMS_64 SUMS_56, SUMS_8(56)
#define SUMS_72 SUMS_64, SUMS_8(64)
#define SUMS_80 SUMS_72, SUMS_8(72)
#define SUMS_96 SUMS_80, SUMS_16(80)

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
    STEP(T, TYPE, 112, REGISTERS_56, SUMS_56, "%56", "%57", "%58")                                                     \
    STEP(T, TYPE, 128, REGISTERS_64, SUMS_64, "%64", "%65", "%66")                                                     \
    STEP(T, TYPE, 144, REGISTERS_72, SUMS_72, "%72", "%73", "%74")                                                     \
    STEP(T, TYPE, 160, REGISTERS_80, SUMS_80, "%80", "%81", "%82")                                                     \
    STEP(T, TYPE, 192, REGISTERS_96, SUMS_96, "%96", "%97", "%98")
STEPS(bf16, "bf16")
STEPS(f16, "f16")

// --------------------------------------------------------------------------------------------------------- tiles

struct OutputTile {
    u32 token;
    u32 feature;
    // Warpgroups that multiply.
    u32 groups;
};

struct Tiles {
    u32 along_tokens;
    u32 along_features;
    // Stages of a tile.
    u32 stages;
    // Tiles that are taken as such. What is left when all blocks have taken equally many is taken in halves, of one
    // warpgroup each, if there are blocks enough: as a block's last tile.
    u32 whole;

    __device__ __forceinline__ explicit Tiles(const ProductArgs& args) {
        along_tokens = div_ceil(args.rows, TOKENS);
        along_features = div_ceil(args.features, FEATURES);
        stages = div_ceil(args.columns, DEPTH);
        const u32 left = all() % gridDim.x;
        whole = !LONE && GROUPS == 2 && 2 * left <= gridDim.x ? all() - left : all();
    }
    // Tiles and halves.
    __device__ __forceinline__ u32 count() const { return 2 * all() - whole; }
    // Warpgroups that multiply a tile.
    __device__ __forceinline__ u32 groups(u32 index) const { return index < whole ? u32(GROUPS) : 1; }
    __device__ __forceinline__ OutputTile at(u32 index) const {
        // The blocks of a cluster take neighbouring weights for the same tokens.
        if (LONE) return OutputTile{index / along_features * TOKENS, index % along_features * FEATURES, u32(GROUPS)};
        // The blocks of a cluster take the same half of neighbouring tiles.
        const u32 left = index < whole ? 0 : index - whole, half = left / CLUSTER % 2;
        const u32 tile = index < whole ? index : whole + left / (2 * CLUSTER) * CLUSTER + left % CLUSTER;
        const u32 band = TOGETHER * along_features;
        const u32 first = tile / band * TOGETHER, rest = tile % band;
        const u32 tall = minimum(TOGETHER, along_tokens - first);
        const u32 token = (first + rest % tall) * TOKENS + half * GROUP_TOKENS;
        return OutputTile{token, rest / tall * FEATURES, groups(index)};
    }

private:
    __device__ __forceinline__ u32 all() const { return along_tokens * along_features; }
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
