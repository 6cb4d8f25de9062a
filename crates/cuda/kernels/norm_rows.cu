// RMSNorm of many rows, one warp a row: the sums of norm.cu in its order, without waiting for other warps.
//
// A lane holds every 32nd pack of 16 bytes of its row. Thread t of norm.cu has a chain over the groups of four elements whose
// number is t modulo 256: here a pack holds GROUPS neighbouring chains, and TURN packs of a lane lie on different ones. The
// tree of block_sum adds chains of one lane first, then those of different lanes, then the two of a pack.
// Aliases: A activations, PACKS of them that a lane holds. Before this comes a norm_rows_*.cuh.

constexpr int WARPS = 4;
constexpr int THREADS = 32 * WARPS;
constexpr int VALUES = Pack<A>::VALUES;
constexpr int GROUPS = VALUES / 4, TURN = 8 / GROUPS;

// Packs of a lane whose weights are in registers before its row is; there is no room for more.
constexpr int EARLY = minimum(PACKS, 8);

using Row = Pack<A>[PACKS];
using Weights = float4[EARLY][GROUPS];

__device__ __forceinline__ u32 first_of(int pack) { return (pack * 32 + threadIdx.x % 32) * VALUES; }

__device__ __forceinline__ void load_row(const A* from, u32 width, Row& row) {
#pragma unroll
    for (int pack = 0; pack < PACKS; ++pack) {
        if (first_of(pack) < width) row[pack] = load_pack(from + first_of(pack));
    }
}

// On their way before wait_for_inputs().
__device__ __forceinline__ void load_weights(const f32* from, u32 width, Weights& weights) {
#pragma unroll
    for (int i = 0; i < EARLY * GROUPS; ++i) {
        const u32 at = first_of(i / GROUPS) + i % GROUPS * 4;
        float4& to = weights[i / GROUPS][i % GROUPS];
        to = float4{0.0f, 0.0f, 0.0f, 0.0f};
        // Weights are padded to four, not to a pack.
        if (at >= width) continue;
        asm volatile("ld.global.v4.f32 {%0, %1, %2, %3}, [%4];"
                     : "=f"(to.x), "=f"(to.y), "=f"(to.z), "=f"(to.w)
                     : "l"(from + at));
    }
}

// The values of a pack, zeros beyond the width.
__device__ __forceinline__ void values_of(const Pack<A>& pack, u32 at, u32 width, float (&x)[VALUES]) {
    decode(pack, x);
    if (at + VALUES <= width) return;
#pragma unroll
    for (int i = 0; i < VALUES; ++i) x[i] = at + i < width ? x[i] : 0.0f;
}

__device__ __forceinline__ float sum_of_squares(const Row& row, u32 width) {
    float chains[TURN][GROUPS] = {};
#pragma unroll
    for (int pack = 0; pack < PACKS; ++pack) {
        float x[VALUES];
        values_of(row[pack], first_of(pack), width, x);
#pragma unroll
        for (int i = 0; i < VALUES; ++i) {
            float& chain = chains[pack % TURN][i / 4];
            chain = mul_add(x[i], x[i], chain);
        }
    }
#pragma unroll
    for (int half = TURN / 2; half > 0; half /= 2) {
#pragma unroll
        for (int i = 0; i < half; ++i) {
#pragma unroll
            for (int group = 0; group < GROUPS; ++group) chains[i][group] = chains[i][group] + chains[i + half][group];
        }
    }
    const float sum = warp_sum(chains[0][0]);
    return GROUPS == 1 ? sum : sum + warp_sum(chains[0][GROUPS - 1]);
}

extern "C" __global__ __launch_bounds__(THREADS) void rms_norm(const Args args) {
    launch_dependents();
    const u32 index = blockIdx.x * WARPS + threadIdx.x / 32;
    Weights weights;
    load_weights(args.weight, args.width, weights);
    wait_for_inputs();
    if (index >= args.rows) return;
    Row row;
    load_row(row_of(args, index), args.width, row);
    const float sum = sum_of_squares(row, args.width);
    const float inverse = divide(1.0f, square_root(divide(sum, float(args.width)) + args.eps));
    A* out = args.out + u64(index) * args.out_stride;
#pragma unroll
    for (int pack = 0; pack < PACKS; ++pack) {
        const u32 at = first_of(pack);
        if (at >= args.width) continue;
        keep(args, index, at, row[pack]);
        float x[VALUES], scaled[VALUES];
        decode(row[pack], x);
#pragma unroll
        for (int i = 0; i < VALUES; i += 4) {
            float weight[4] = {};
            if (pack < EARLY) {
                const float4& early = weights[pack % EARLY][i / 4];
                weight[0] = early.x, weight[1] = early.y, weight[2] = early.z, weight[3] = early.w;
            } else if (at + i < args.width) {
                decode(load_few<f32, 4>(args.weight + at + i), weight);
            }
#pragma unroll
            for (int j = 0; j < 4; ++j) scaled[i + j] = (x[i + j] * inverse) * weight[j];
        }
        store_first(out + at, i32(args.width - at), scaled);
    }
}
