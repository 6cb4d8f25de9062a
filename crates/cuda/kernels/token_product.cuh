// The phases of the token kernel that are products.

// Bytes of sums of units, behind the activations.
constexpr u32 SUM_BYTES = 8192;

// QKV and GATE_UP.
__device__ __forceinline__ void double_phase(
    const TokenArgs& args, const Phase& phase, const Share& share, const Place& place, const Ring& ring, u32 fill,
    const Work& work, u32 epoch
) {
    const bool is_qkv = phase.kind == QKV, has_bias = phase.bias != nullptr;
    const u64* words = is_qkv ? args.hidden : args.middle;
    const u32 columns = phase.columns;
    const Finisher finisher(share, 2, work);
    NormWeights weight = {};
    load_norm(phase, weight);
    DoubleEnding ending = {};
    if (finisher.works) ending.find(args, phase, place, finisher.output(share));
    Product product(share, 2, fill, ring, work);
    auto asked = ask_normed(words, columns);
    take_normed(asked, weight, columns, args.eps, epoch, work);
    product.multiply(ring, work);
    if (!finisher.works) return;
    float2 total[2] = {};
    finisher.add(share.pairs, total);
    if (is_qkv) {
        ending.finish_pairs(total, has_bias, epoch);
    } else {
        ending.finish_gated(total, epoch);
    }
}

// OUT and DOWN.
__device__ __forceinline__ void single_phase(
    const TokenArgs& args, const Phase& phase, const Share& share, const Ring& ring, u32 fill, const Work& work, u32 epoch
) {
    const bool is_out = phase.kind == OUT;
    const u64* words = is_out ? args.attended : args.gated;
    const f32 alpha = phase.alpha;
    const u32 columns = phase.columns;
    const Finisher finisher(share, 1, work);
    SingleEnding ending = {};
    if (finisher.works) ending.find(args, phase, finisher.output(share));
    Product product(share, 1, fill, ring, work);
    auto asked = ask_input(words, columns);
    take_input(asked, columns, epoch, work);
    product.multiply(ring, work);
    if (!finisher.works) return;
    float2 total[1] = {};
    finisher.add(share.pairs, total);
    ending.finish(total[0], alpha, epoch, is_out ? epoch : epoch + 1);
}

// What the choice of the next token asks first. `best` is a thread's.
__device__ __forceinline__ void store_best(const TokenArgs& args, key best, const Work& work) {
    key* of_warp = reinterpret_cast<key*>(work.scratch);
    const u32 lane = threadIdx.x % 32;
    best = warp_best(best);
    if (lane == 0) of_warp[threadIdx.x / 32] = best;
    consumers_sync();
    if (threadIdx.x >= 32) return;
    best = warp_best(lane < CONSUMER_WARPS ? of_warp[lane] : NOTHING);
    if (lane == 0) args.bests[blockIdx.x] = best;
}

// LOGITS: a warp has a tile of each group, and adds its segments itself.
__device__ __forceinline__ void logits_phase(
    const TokenArgs& args, const Phase& phase, const Share& share, const Ring& ring, u32 fill, const Work& work, u32 epoch
) {
    NormWeights weight = {};
    load_norm(phase, weight);
    auto asked = ask_normed(args.hidden, phase.columns);
    take_normed(asked, weight, phase.columns, args.eps, epoch, work);
    const u32 pairs = share.pairs, warp = threadIdx.x / 32;
    key best = NOTHING;
    for (u32 group = 0; group + warp < share.count; group += CONSUMER_WARPS) {
        const u32 tiles = minimum(share.count - group, CONSUMER_WARPS);
        float total = 0.0f;
        for (u32 pair = 0; pair < pairs; ++pair) {
            const u32 number = fill + group * pairs + pair * tiles + warp;
            const LaneWeights weights(ring.wait(number));
            const u32 input = input_address(work, pair);
            float sums[4] = {};
#pragma unroll
            for (u32 step = 0; step < STEPS; step += 2) {
                Fragments<2> two;
                weights.load(step, two);
                multiply_two(load_input(input, step), two[0], two[1], sums);
            }
            ring.release(number, bits_of(sums[0]));
            total = total + sums[0];
            total = total + sums[3];
        }
        if (threadIdx.x % 4 == 0) {
            const u32 token = (share.first + group + warp) * TILE + threadIdx.x % 32 / 4;
            args.logits[token] = total;
            best = minimum(best, rank_key(total, token));
        }
    }
    store_best(args, best, work);
}
