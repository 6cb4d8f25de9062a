// What becomes of the sums of the token kernel's products: each number as product.cuh and product_small_qkv.cuh compute it.

// Where this token's keys and values go, and what they are turned by.
struct Place {
    u32 position;
    u32 rope_set;
    u32 page;
};

// The word of two neighbouring threads' outputs, in both.
__device__ __forceinline__ u32 join_neighbours(float x) {
    const float other = __shfl_xor_sync(FULL_WARP, x, 1);
    const bool odd = threadIdx.x % 2 == 1;
    const float two[2] = {odd ? other : x, odd ? x : other};
    return encode_word(two, A{});
}

// What a thread needs for its output beside the sums, found while activations are waited for: of QKV and GATE_UP.
struct DoubleEnding {
    // The exchange's word that this thread stores.
    u64* to;
    // QKV: where the same goes in the cache, or null. Where the cache has scales, attention writes it: it takes keys and
    // values as they are before they are rounded.
    C* cache;
    bool unrounded;
    float bias[2];
    float cos;
    float sin;

    // A pair of dimensions. Even threads store the words of the first half of the head, odd ones those of the second.
    __device__ __forceinline__ void find(const TokenArgs& args, const Phase& phase, const Place& place, u32 output) {
        if (phase.kind == GATE_UP) {
            to = args.gated + output / 2;
            return;
        }
        const u32 pairs = DIM / 2, head = output / pairs, pair = output % pairs;
        const u32 dim = pair / 2 * 2 + output % 2 * pairs;
        to = args.projected + head * pairs + projected_place(dim / 2);
        if (phase.bias != nullptr) {
            bias[0] = phase.bias[head * DIM + pair];
            bias[1] = phase.bias[head * DIM + pair + pairs];
        }
        const u64 at = (u64(place.rope_set) * args.context + place.position) * pairs + pair;
        cos = args.cos[at];
        sin = args.sin[at];
        if (head < args.query_heads) return;
        const u32 cached = head - args.query_heads;
        const bool is_key = cached < args.key_heads;
        // Values are not turned.
        if (!is_key) cos = infinity();
        if (SCALED) {
            unrounded = true;
            to = args.projected + projected_newest(args, cached) + pair;
            return;
        }
        const CacheLayer layer{phase.cache, phase.scales, args.key_heads, args.page_shift, args.cache_stride, 0};
        const u32 key = vector_in_page(layer, place.page, is_key ? cached : cached - args.key_heads, place.position);
        cache = phase.cache + u64(is_key ? key : key + value_offset(layer)) * args.cache_stride + dim;
    }

    // Bias, RoPE, the exchange, and the cache, each number as product_small_qkv.cuh computes it.
    __device__ __forceinline__ void finish_pair(float x, float y, bool has_bias, u32 epoch, bool valid) const {
        if (has_bias) {
            x = x + bias[0];
            y = y + bias[1];
        }
        if (cos != infinity()) {
            const float turned = mul_add(y, -sin, x * cos);
            y = mul_add(x, sin, y * cos);
            x = turned;
        }
        const u32 low = join_neighbours(x), high = join_neighbours(y);
        const u32 data = threadIdx.x % 2 == 0 ? low : high;
        if (!valid) return;
        if (SCALED && unrounded) {
            post(to, bits_of(x), epoch);
            post(to + DIM / 2, bits_of(y), epoch);
            return;
        }
        post(to, data, epoch);
        if (cache != nullptr) *reinterpret_cast<u32*>(cache) = data;
    }
    __device__ __forceinline__ void finish_gated(float gate, float up, u32 epoch, bool valid) const {
        const u32 data = join_neighbours(silu(gate) * up);
        if (valid && threadIdx.x % 2 == 0) post(to, data, epoch);
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
    __device__ __forceinline__ void finish(float sum, f32 alpha, u32 epoch, u32 to_epoch, bool valid) const {
        float two[2] = {0.0f, 0.0f};
        if (valid) decode_word(take(residual_at, residual, epoch), A{}, two);
        const u32 data = join_neighbours(sum * alpha + (threadIdx.x % 2 == 0 ? two[0] : two[1]));
        if (valid && threadIdx.x % 2 == 0) post(to, data, to_epoch);
    }
};

// Adds all segments of COUNT outputs, `stride` floats apart, ascending.
template <int COUNT>
__device__ __forceinline__ void add_segments(const float* sums, u32 segments, u32 stride, float (&total)[COUNT]) {
    // Twenty, which 4,864 columns have, are two rounds.
    constexpr u32 EACH = COUNT == 1 ? 10 : 4;
#pragma unroll 1
    for (u32 first = 0; first < segments; first += EACH, sums += EACH * TILE) {
        float part[COUNT][EACH];
#pragma unroll
        for (u32 i = 0; i < EACH; ++i) {
            // Zeros at the end change nothing.
#pragma unroll
            for (u32 j = 0; j < COUNT; ++j) part[j][i] = first + i < segments ? sums[i * TILE + j * stride] : 0.0f;
        }
#pragma unroll
        for (u32 i = 0; i < EACH; ++i) {
#pragma unroll
            for (u32 j = 0; j < COUNT; ++j) total[j] = total[j] + part[j][i];
        }
    }
}

// This thread's output of a phase, if it finishes one.
struct Finisher {
    u32 number;
    bool works;
    bool valid;

    // Whole warps work: neighbouring lanes join their outputs.
    __device__ __forceinline__ explicit Finisher(const Share& share) {
        number = threadIdx.x - READERS;
        works = threadIdx.x >= READERS && number < round_up(share.count * TILE, 32);
        valid = works && number < share.count * TILE;
    }
    // The sums of the first strip's segments.
    __device__ __forceinline__ const float* sums(const Work& work, u32 segments, u32 strips) const {
        return work.sums + number / TILE * strips * segments * TILE + number % TILE;
    }
};
