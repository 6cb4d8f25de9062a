// What becomes of the sums of the token kernel's products: each number as product.cuh and product_small_qkv.cuh compute it.

// Where this token's keys and values go, and what they are turned by.
struct Place {
    u32 position;
    // Row of the tables of cosines and sines.
    u32 rope;
    u32 page;
};

__device__ __forceinline__ u32 encode_both(float first, float second) {
    const float two[2] = {first, second};
    return encode_word(two, A{});
}

// The sums of a tile's neighbouring outputs, a word of the exchange, are finished by one thread. What it needs beside the
// sums is found while activations are waited for: of QKV and GATE_UP.
struct DoubleEnding {
    // The exchange's word, of QKV that of the first half of a head.
    u64* to;
    // QKV: where the same goes in the cache, or null. Where the cache has scales, attention writes it: it takes keys and
    // values as they are before they are rounded.
    C* cache;
    bool unrounded;
    bool turned;
    float bias[2][2];
    float cos[2];
    float sin[2];

    // Two pairs of dimensions: one word of each half of the head.
    __device__ __forceinline__ void find(const TokenArgs& args, const Phase& phase, const Place& place, u32 output) {
        if (phase.kind == GATE_UP) {
            to = args.gated + output / 2;
            return;
        }
        const u32 pairs = DIM / 2, head = output / pairs, pair = output % pairs;
        to = args.projected + head * pairs + projected_place(pair / 2);
        const u64 at = u64(place.rope) * pairs + pair;
#pragma unroll
        for (u32 i = 0; i < 2; ++i) {
            if (phase.bias != nullptr) {
                bias[0][i] = phase.bias[head * DIM + pair + i];
                bias[1][i] = phase.bias[head * DIM + pair + pairs + i];
            }
            cos[i] = args.cos[at + i];
            sin[i] = args.sin[at + i];
        }
        turned = true;
        if (head < args.query_heads) return;
        const u32 cached = head - args.query_heads;
        const bool is_key = cached < args.key_heads;
        turned = is_key;
        if (SCALED) {
            unrounded = true;
            to = args.projected + projected_newest(args, cached) + pair;
            return;
        }
        const CacheLayer layer{phase.cache, phase.scales, args.key_heads, args.page_shift, args.cache_stride, 0};
        const u32 key = vector_in_page(layer, place.page, is_key ? cached : cached - args.key_heads, place.position);
        cache = phase.cache + u64(is_key ? key : key + value_offset(layer)) * args.cache_stride + pair;
    }

    // Bias, RoPE, the exchange, and the cache, each number as product_small_qkv.cuh computes it.
    __device__ __forceinline__ void finish_pairs(float2 (&sum)[2], bool has_bias, u32 epoch) const {
        float x[2] = {sum[0].x, sum[0].y}, y[2] = {sum[1].x, sum[1].y};
#pragma unroll
        for (u32 i = 0; i < 2; ++i) {
            if (has_bias) {
                x[i] = x[i] + bias[0][i];
                y[i] = y[i] + bias[1][i];
            }
            if (turned) {
                const float first = mul_add(y[i], -sin[i], x[i] * cos[i]);
                y[i] = mul_add(x[i], sin[i], y[i] * cos[i]);
                x[i] = first;
            }
        }
        if (SCALED && unrounded) {
            post_two(to, bits_of(x[0]), bits_of(x[1]), epoch);
            post_two(to + DIM / 2, bits_of(y[0]), bits_of(y[1]), epoch);
            return;
        }
        const u32 low = encode_both(x[0], x[1]), high = encode_both(y[0], y[1]);
        post(to, low, epoch);
        post(to + projected_place(DIM / 4), high, epoch);
        if (cache == nullptr) return;
        *reinterpret_cast<u32*>(cache) = low;
        *reinterpret_cast<u32*>(cache + DIM / 2) = high;
    }
    __device__ __forceinline__ void finish_gated(float2 (&sum)[2], u32 epoch) const {
        post(to, encode_both(silu<A>(sum[0].x) * sum[1].x, silu<A>(sum[0].y) * sum[1].y), epoch);
    }
};

// The same of OUT and DOWN.
struct SingleEnding {
    u64* to;
    const u64* residual_at;
    u64 residual;

    __device__ __forceinline__ void find(const TokenArgs& args, const Phase& phase, u32 output) {
        to = (phase.kind == OUT ? args.middle : args.hidden) + spread(output / 2);
        residual_at = (phase.kind == OUT ? args.hidden : args.middle) + spread(output / 2);
        residual = look(residual_at);
    }
    __device__ __forceinline__ void finish(float2 sum, f32 alpha, u32 epoch, u32 to_epoch) const {
        float two[2];
        decode_word(take(residual_at, residual, epoch), A{}, two);
        post(to, encode_both(sum.x * alpha + two[0], sum.y * alpha + two[1]), to_epoch);
    }
};

// This thread's two outputs of a phase, if it finishes any.
struct Finisher {
    u32 number;
    bool works;
    // Its sums of the first strip's first segment.
    u32 sums;

    __device__ __forceinline__ Finisher(const Share& share, u32 strips, const Work& work) {
        number = threadIdx.x - READERS;
        works = threadIdx.x >= READERS && number < share.count * (TILE / 2);
        const u32 tile = number / (TILE / 2) * strips * share.pairs * 2 * TILE;
        sums = kept(shared_address(work.sums) + (tile + number % (TILE / 2) * 2) * sizeof(float));
    }
    __device__ __forceinline__ u32 output(const Share& share) const { return share.first * TILE + number * 2; }

    // Adds all segments of each strip, ascending.
    template <int STRIPS>
    __device__ __forceinline__ void add(u32 pairs, float2 (&total)[STRIPS]) const {
        // Pairs of segments at a time: ten, which 4,864 columns have, are two rounds.
        constexpr u32 EACH = STRIPS == 1 ? 5 : 2;
        const u32 stride = pairs * 2 * TILE * sizeof(float);
        u32 from = sums;
#pragma unroll 1
        for (u32 first = 0; first < pairs; first += EACH, from += EACH * 2 * TILE * sizeof(float)) {
            float2 part[STRIPS][2 * EACH];
#pragma unroll
            for (u32 i = 0; i < 2 * EACH; ++i) {
                // Zeros at the end change nothing.
#pragma unroll
                for (u32 j = 0; j < STRIPS; ++j) {
                    part[j][i] = float2{0.0f, 0.0f};
                    if (first + i / 2 < pairs) part[j][i] = load_shared_two(from + i * TILE * sizeof(float) + j * stride);
                }
            }
#pragma unroll
            for (u32 i = 0; i < 2 * EACH; ++i) {
#pragma unroll
                for (u32 j = 0; j < STRIPS; ++j) {
                    total[j] = float2{total[j].x + part[j][i].x, total[j].y + part[j][i].y};
                }
            }
        }
    }
};
