// What the machine can do at most: reading memory as a stream, and multiplying and adding without memory.
//
// Aliases: W and A, the format of the matrix steps.

struct CeilingArgs {
    uint4* input;  // gridDim.x * THREADS * LOADS of them
    u32* out;      // never written in practice
    u32 steps;
    u32 unused;
};

constexpr int THREADS = 256, LOADS = 8, CHAINS = 8;

// Mixes the bits of an index so that every one of them looks random (the finaliser of MurmurHash3).
__device__ __forceinline__ u32 scramble(u32 x) {
    x = (x ^ x >> 16) * 0x85ebca6b;
    x = (x ^ x >> 13) * 0xc2b2ae35;
    return x ^ x >> 16;
}

// A number between 1/16 and 1 in magnitude. How many bits change from one operand to the next decides how much power
// the units draw, and with it their clock: ones would be faster than any model is.
__device__ __forceinline__ float random_number(u32 index) {
    u32 bits = scramble(index);
    return float_of((bits & 0x807fffff) | (123 + (bits >> 23 & 3)) << 23);
}

__device__ __forceinline__ u32 random_pair(u32 index) {
    const float pair[2] = {random_number(2 * index), random_number(2 * index + 1)};
    return encode_word(pair, W{});
}

// Writes what read_stream reads.
extern "C" __global__ void __launch_bounds__(THREADS) fill_stream(const CeilingArgs args) {
    launch_dependents();
    wait_for_inputs();
    u32 first = blockIdx.x * (THREADS * LOADS) + threadIdx.x;
#pragma unroll
    for (int i = 0; i < LOADS; ++i) {
        u32 at = first + i * THREADS;
        args.input[at] = {scramble(4 * at), scramble(4 * at + 1), scramble(4 * at + 2), scramble(4 * at + 3)};
    }
}

extern "C" __global__ void __launch_bounds__(THREADS) read_stream(const CeilingArgs args) {
    launch_dependents();
    wait_for_inputs();
    const uint4* from = args.input + u64(blockIdx.x) * (THREADS * LOADS) + threadIdx.x;
    uint4 raw[LOADS];
#pragma unroll
    for (int i = 0; i < LOADS; ++i) raw[i] = from[i * THREADS];
    u32 all = 0;
#pragma unroll
    for (int i = 0; i < LOADS; ++i) all |= raw[i].x ^ raw[i].y ^ raw[i].z ^ raw[i].w;
    // No bits at all: the compiler cannot know that they are random.
    if (all == 0) args.out[threadIdx.x] = all;
}

// `steps` times CHAINS f32 multiply-adds in every thread.
extern "C" __global__ void __launch_bounds__(THREADS) fma_steps(const CeilingArgs args) {
    launch_dependents();
    wait_for_inputs();
    float sums[CHAINS], factor = random_number(threadIdx.x), addend = random_number(THREADS + threadIdx.x);
#pragma unroll
    for (int i = 0; i < CHAINS; ++i) sums[i] = random_number(i * THREADS + threadIdx.x);
#pragma unroll 16
    for (u32 step = 0; step < args.steps; ++step) {
#pragma unroll
        for (int i = 0; i < CHAINS; ++i) sums[i] = mul_add(sums[i], factor, addend);
    }
    float all = 0.0f;
#pragma unroll
    for (int i = 0; i < CHAINS; ++i) all += sums[i];
    if (all == 1.0e30f) args.out[threadIdx.x] = bits_of(all);
}

// `steps` times CHAINS matrix steps in every warp, on operands that differ between lanes. A step multiplies 16 by 16
// with 16 by 8. Hopper's matrix units are only fully used by whole warpgroups: there, two steps of four warps are one
// wgmma of 64 by 16 with 16 by 128, the right operand in shared memory.
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
constexpr int COLUMNS = 128, DEPTH = 16, TILES = 4, BATCH = 16;

template <class T>
__device__ __forceinline__ void wgmma(float (&c)[COLUMNS / 2], const u32 (&a)[4], u64 b);

// Eight sums as operands.
#define SUMS(k)                                                                                                       \
    "+f"(c[8 * k]), "+f"(c[8 * k + 1]), "+f"(c[8 * k + 2]), "+f"(c[8 * k + 3]), "+f"(c[8 * k + 4]),                   \
        "+f"(c[8 * k + 5]), "+f"(c[8 * k + 6]), "+f"(c[8 * k + 7])
#define WGMMA(type)                                                                                                   \
    template <>                                                                                                       \
    __device__ __forceinline__ void wgmma<type>(float (&c)[COLUMNS / 2], const u32 (&a)[4], u64 b) {                  \
        asm volatile("wgmma.mma_async.sync.aligned.m64n128k16.f32." #type "." #type " {"                              \
                     "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "                         \
                     "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "               \
                     "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "               \
                     "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "              \
                     "{%64, %65, %66, %67}, %68, 1, 1, 1, 0;"                                                         \
                     : SUMS(0), SUMS(1), SUMS(2), SUMS(3), SUMS(4), SUMS(5), SUMS(6), SUMS(7)                         \
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));                                           \
    }
WGMMA(bf16)
WGMMA(f16)
#undef WGMMA
#undef SUMS

extern "C" __global__ void __launch_bounds__(THREADS) matrix_steps(const CeilingArgs args) {
    launch_dependents();
    wait_for_inputs();
    // TILES tiles of COLUMNS rows of DEPTH values; in groups of eight rows by 16 bytes, as without swizzling.
    __shared__ __align__(128) u32 right[TILES][COLUMNS * DEPTH / 2];
    for (u32 i = threadIdx.x; i < TILES * COLUMNS * DEPTH / 2; i += THREADS) right[0][i] = random_pair(i);
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    __syncthreads();
    u32 left[TILES][4];
#pragma unroll
    for (int i = 0; i < 4 * TILES; ++i) left[i / 4][i % 4] = random_pair(i * THREADS + threadIdx.x);
    // Address, and the distances between groups along k and along the columns, in 16 bytes.
    u64 b = (shared_address(right) >> 4) | u64(COLUMNS * 16 >> 4) << 16 | u64(128 >> 4) << 32;
    float sums[COLUMNS / 2] = {};
    // One step of each of CHAINS chains in four warps is 64 by 64: half of a wgmma.
    for (u32 step = 0; step < args.steps; step += 2 * BATCH) {
        asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
        for (int i = 0; i < BATCH; ++i) wgmma<W>(sums, left[i % TILES], b + i % TILES * (sizeof(right[0]) >> 4));
        asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
        // Meanwhile the block's other warpgroup keeps the units busy.
        asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
    }
    float all = 0.0f;
#pragma unroll
    for (int i = 0; i < COLUMNS / 2; ++i) all += sums[i];
    if (all == 1.0e30f) args.out[threadIdx.x] = bits_of(all);
}
#else
extern "C" __global__ void __launch_bounds__(THREADS) matrix_steps(const CeilingArgs args) {
    launch_dependents();
    wait_for_inputs();
    float sums[CHAINS][4] = {};
    u32 operands[6];
#pragma unroll
    for (int i = 0; i < 6; ++i) operands[i] = random_pair(i * THREADS + threadIdx.x);
    for (u32 step = 0; step < args.steps; ++step) {
#pragma unroll
        for (int i = 0; i < CHAINS; ++i) {
            mma<W>(sums[i], operands[0], operands[1], operands[2], operands[3], operands[4], operands[5]);
        }
    }
    float all = 0.0f;
#pragma unroll
    for (int i = 0; i < CHAINS; ++i) all += sums[i][0] + sums[i][1] + sums[i][2] + sums[i][3];
    if (all == 1.0e30f) args.out[threadIdx.x] = bits_of(all);
}
#endif
