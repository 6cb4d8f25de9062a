// The sums of the token kernel's products: those of product_mma.cuh, to the bit.
//
// A tile is eight outputs, of one strip of eight rows of the weights or of two. A fill of the ring is a strip's next two
// segments, and one chain of matrix steps: the rows of the first segment are the low half of the steps' rows and meet the
// even columns, which are its activations; the second segment has the high half and the odd columns. Of LOGITS a warp has
// whole tiles; of other phases all warps share the fills.

constexpr u32 STEPS = SEGMENT / 16, TILE = 8;

__device__ __forceinline__ bool is_double(u32 kind) { return kind == QKV || kind == GATE_UP; }

// -------------------------------------------------------------------------------------------------------- copying

// The first row of a tile's strip.
__device__ __forceinline__ u32 first_row(const Phase& phase, u32 tile, u32 strip) {
    const u32 output = tile * TILE;
    if (phase.kind == QKV) return output / (DIM / 2) * DIM + output % (DIM / 2) + strip * (DIM / 2);
    return output + strip * phase.features;
}

// Eight rows of 512 columns, in pieces of 64 columns. Pack p of eight of row r lies at p ^ r. Columns beyond the last are zero.
__device__ __forceinline__ void feed(const TensorMap* weights, u32 row, u32 pair, Ring& ring) {
    const u32 slot = ring.claim();
    if (threadIdx.x % 32 == 0) {
        ring.expect(FILL_BYTES);
        copy_box(slot, weights, 0, row, pair * 8, ring.barrier());
    }
    ring.commit();
}

__device__ __forceinline__ void feed_product(const Phase& phase, const Share& share, Ring& ring) {
    const TensorMap* weights = phase.weights;
    const u32 pairs = share.pairs, end = share.first + share.count;
    const u32 strips = is_double(phase.kind) ? 2 : 1, group = phase.kind == LOGITS ? CONSUMER_WARPS : 1;
    for (u32 first = share.first; first < end; first += group) {
        for (u32 strip = 0; strip < strips; ++strip) {
            const u32 row = first_row(phase, first, strip), rows = minimum(group, end - first) * TILE;
            for (u32 pair = 0; pair < pairs; ++pair) {
                for (u32 i = 0; i < rows; i += TILE) feed(weights, row + i, pair, ring);
            }
        }
    }
}

// -------------------------------------------------------------------------------------------------------- multiplying

// The weights of a chain: registers hold a warp's first ones of a phase while activations are waited for.
template <u32 COUNT>
using Fragments = u32[COUNT][4];
using Held = Fragments<STEPS>;

// Where a lane reads the weights of a chain. Matrices: the first eight columns of both segments, then the second eight.
struct LaneWeights {
    u32 base;
    u32 place;

    __device__ __forceinline__ explicit LaneWeights(u32 slot) {
        const u32 lane = threadIdx.x % 32, row = lane % 8;
        base = slot + lane / 8 % 2 * (FILL_BYTES / 2) + row * 128;
        place = (lane / 16 ^ row) * 16;
    }
    // COUNT steps from number `first` on.
    template <u32 COUNT>
    __device__ __forceinline__ void load(u32 first, Fragments<COUNT>& to) const {
#pragma unroll
        for (u32 i = 0; i < COUNT; ++i) {
            const u32 step = first + i;
            load_matrices(to[i], base + step / 4 * 1024 + (place ^ step % 4 * 32));
        }
    }
};

// Where a lane reads the activations of a chain: lanes 0 to 3 those of the first segment, 4 to 7 of the second.
__device__ __forceinline__ u32 input_address(const Work& work, u32 pair) {
    const u32 lane = threadIdx.x % 32;
    return shared_address(work.input) + (2 * pair + lane / 4 % 2) * INPUT_PITCH + lane % 4 * 16;
}

// The activations of two steps. Of the columns only the first two have any, so that only eight lanes read.
__device__ __forceinline__ uint4 load_input(u32 input, u32 step) {
    uint4 x = make_uint4(0, 0, 0, 0);
    asm volatile("{\n.reg .pred p;\nsetp.lt.u32 p, %5, 8;\n@p ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];\n}"
                 : "+r"(x.x), "+r"(x.y), "+r"(x.z), "+r"(x.w) : "r"(input + step * 32), "r"(threadIdx.x % 32) : "memory");
    return x;
}
__device__ __forceinline__ void multiply_two(uint4 x, const u32 (&first)[4], const u32 (&second)[4], float (&sums)[4]) {
    multiply<A>(sums, first, x.x, x.y);
    multiply<A>(sums, second, x.z, x.w);
}

// Where a fill of a warp is, and its activations.
struct Chain {
    u32 fill;
    LaneWeights weights;
    u32 input;

    __device__ __forceinline__ Chain(u32 fill, u32 pair, const Ring& ring, const Work& work)
        : fill(fill), weights(ring.at(fill)), input(input_address(work, pair)) {}
};

// A warp's place among those that take fills: first the warps that neither take activations nor finish the first outputs, last
// the one that finishes these.
__device__ __forceinline__ u32 chain_rank() { return (threadIdx.x / 32 + CONSUMER_WARPS - READERS / 32 - 1) % CONSUMER_WARPS; }

// The fills of a phase, which warps take in turns.
struct Fills {
    const Share& share;
    // The block's first one, and the one behind its last one.
    u32 first;
    u32 end;
    // Warps that take any. Where two rounds are enough they are so many that a warp's two fills meet the same activations.
    u32 warps;

    __device__ __forceinline__ Fills(const Share& share, u32 strips, u32 first)
        : share(share), first(first), end(first + share.count * share.pairs * strips), warps(CONSUMER_WARPS) {
        const u32 count = end - first, even = CONSUMER_WARPS - place_in_strip(CONSUMER_WARPS);
        if (count > CONSUMER_WARPS && count <= 2 * even) warps = even;
    }

    __device__ __forceinline__ u32 place_in_strip(u32 x) const { return x - (x * share.inverse >> 16) * share.pairs; }
    __device__ __forceinline__ Chain chain(u32 fill, const Ring& ring, const Work& work) const {
        return Chain(fill, place_in_strip(fill - first), ring, work);
    }
    // A warp's first fill.
    __device__ __forceinline__ u32 of_warp() const { return chain_rank() < warps ? first + chain_rank() : end; }
    __device__ __forceinline__ bool has(const Chain& chain) const { return chain.fill < end; }

    // Holds the weights of a chain, and frees its slot.
    __device__ __forceinline__ void hold(const Chain& chain, bool is_there, const Ring& ring, Held& held) const {
        if (!is_there) ring.wait(chain.fill);
        chain.weights.load(0, held);
        u32 read[4] = {};
#pragma unroll
        for (u32 i = 0; i < STEPS * 4; ++i) read[i % 4] ^= held[i / 4][i % 4];
        ring.release(chain.fill, read[0] ^ read[1] ^ read[2] ^ read[3]);
    }
    // Lanes 0, 4, ... have the sums of both segments.
    __device__ __forceinline__ void store(const Chain& chain, const Work& work, const float (&sums)[4]) const {
        if (threadIdx.x % 4 != 0) return;
        float* to = work.sums + (chain.fill - first) * 2 * TILE + threadIdx.x % 32 / 4;
        to[0] = sums[0];
        to[TILE] = sums[3];
    }
    // The chain of a fill whose weights are held, and that of the warp's next one, if there is one, beside it.
    __device__ __forceinline__ void multiply(
        const Chain& chain, const Chain& next, bool next_is_there, const Held& held, const Ring& ring, const Work& work
    ) const {
        float sums[4] = {};
        if (!has(next)) {
#pragma unroll
            for (u32 step = 0; step < STEPS; step += 2) {
                multiply_two(load_input(chain.input, step), held[step], held[step + 1], sums);
            }
        } else {
            if (!next_is_there) ring.wait(next.fill);
            if (next.input == chain.input) {
                multiply_both<true>(chain, next, held, ring, work, sums);
            } else {
                multiply_both<false>(chain, next, held, ring, work, sums);
            }
        }
        store(chain, work, sums);
    }

private:
    // Shared memory is busy with the weights of all warps: what both chains multiply is loaded once.
    template <bool SAME>
    __device__ __forceinline__ void multiply_both(
        const Chain& chain, const Chain& next, const Held& held, const Ring& ring, const Work& work, float (&sums)[4]
    ) const {
        float next_sums[4] = {};
#pragma unroll
        for (u32 step = 0; step < STEPS; step += 2) {
            Fragments<2> two;
            next.weights.load(step, two);
            const uint4 x = load_input(chain.input, step);
            multiply_two(x, held[step], held[step + 1], sums);
            multiply_two(SAME ? x : load_input(next.input, step), two[0], two[1], next_sums);
        }
        ring.release(next.fill, bits_of(next_sums[0]));
        store(next, work, next_sums);
    }
};

// What a warp multiplies in a phase: its first two fills, found while activations are waited for, and the first one's weights.
struct Product {
    Fills fills;
    Chain one;
    Chain two;
    bool two_is_there = false;
    Held held;

    __device__ __forceinline__ Product(const Share& share, u32 strips, u32 first, const Ring& ring, const Work& work)
        : fills(share, strips, first), one(fills.chain(fills.of_warp(), ring, work)),
          two(fills.chain(one.fill + fills.warps, ring, work)) {
        if (fills.has(one)) {
            bool one_is_there;
            ring.look_at(one.fill, two.fill, one_is_there, two_is_there);
            fills.hold(one, one_is_there, ring, held);
        } else {
            // Else what these registers had before would be kept.
#pragma unroll
            for (u32 i = 0; i < STEPS * 4; ++i) held[i / 4][i % 4] = 0;
        }
    }

    // When the activations are there.
    __device__ __forceinline__ void multiply(const Ring& ring, const Work& work) {
        if (fills.has(one)) fills.multiply(one, two, two_is_there, held, ring, work);
        for (u32 fill = two.fill + fills.warps; fill < fills.end; fill += 2 * fills.warps) {
            const Chain third = fills.chain(fill, ring, work), fourth = fills.chain(fill + fills.warps, ring, work);
            fills.hold(third, false, ring, held);
            fills.multiply(third, fourth, false, held, ring, work);
        }
        consumers_sync();
    }
};
