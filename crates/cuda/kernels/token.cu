// One decoded token in one kernel: a block on every multiprocessor, which stays there for all phases of the model. The first
// warps consume, the last one copies weights, keys and values ahead (token_ring.cuh); results pass between blocks through
// token_exchange.cuh. All blocks have to be resident together.

constexpr u32 THREADS = CONSUMERS + 32;

static_assert(ATTENTION_BYTES <= WORK_BYTES, "attention has room");

// What lies in shared memory behind the ring.
struct Layout {
    Ring ring;
    Work work;
    const Phase* phases;
    const Share* shares;

    __device__ __forceinline__ Layout(const TokenArgs& args, u8* shared) {
        u8* behind = shared + SLOTS * FILL_BYTES;
        ring = Ring{shared_address(shared), 0, 0, 0, 0, FLIGHT};
        work.input = behind;
        work.sums = reinterpret_cast<float*>(behind + args.work_bytes - SUM_BYTES);
        behind += args.work_bytes;
        work.scratch = reinterpret_cast<float*>(behind);
        behind += READERS * sizeof(float);
        ring.barriers = shared_address(behind);
        behind += SLOTS * 16;
        phases = reinterpret_cast<const Phase*>(behind);
        shares = reinterpret_cast<const Share*>(behind + args.phase_count * sizeof(Phase));
    }
};

__device__ __forceinline__ void copy_phases(const TokenArgs& args, const Layout& layout) {
    u64* to = reinterpret_cast<u64*>(const_cast<Phase*>(layout.phases));
    const u64* from = reinterpret_cast<const u64*>(args.phases);
    for (u32 i = threadIdx.x; i < args.phase_count * sizeof(Phase) / 8; i += THREADS) to[i] = from[i];
    for (u32 i = threadIdx.x; i < args.phase_count; i += THREADS) {
        const Phase& phase = args.phases[i];
        const TileRange range = args.ranges[phase.range * gridDim.x + blockIdx.x];
        const u32 pairs = maximum(div_ceil(phase.columns, 2 * SEGMENT), 1u);
        const_cast<Share*>(layout.shares)[i] = Share{range.first, range.count, pairs, 65536 / pairs + 1};
        acquire_map(phase.kind == ATTENTION ? phase.cache_map : phase.weights);
    }
}

__device__ __forceinline__ void produce(const TokenArgs& args, const Layout& layout) {
    Ring ring = layout.ring;
    bool waited = false;
#pragma unroll 1
    for (u32 i = 0; i < args.phase_count; ++i) {
        const Phase& phase = layout.phases[i];
        if (phase.kind != ATTENTION) {
            if (phase.kind == LOGITS) ring.flight = LAST_FLIGHT;
            feed_product(phase, layout.shares[i], ring);
            continue;
        }
        if (!waited) wait_for_inputs();
        waited = true;
        attention_feed(args, phase, layout.shares[i].first, ring);
    }
}

// The token's embedding as the first layer's input.
__device__ __forceinline__ void post_embedding(const TokenArgs& args, u32 epoch) {
    const A* row = args.embedding + u64(args.batch.tokens[0]) * args.embedding_stride;
    for (u32 i = threadIdx.x; i < args.width / 4; i += CONSUMERS) {
        const uint2 four = load_few<A, 4>(row + i * 4).raw.bits;
        post_two(args.hidden + spread(i * 2), four.x, four.y, epoch);
    }
}

__device__ __forceinline__ Place find_place(const TokenArgs& args, const TokenRow& row) {
    const u32 rope_set = args.batch.sequences[args.batch.row_sequence[0]].rope_set;
    return Place{row.position, rope_set * args.context + row.position, row.block_table[row.position >> args.page_shift]};
}

__device__ __forceinline__ void consume(const TokenArgs& args, const Layout& layout) {
    wait_for_inputs();
    u32 epoch = *args.epoch, fill = 0;
    const Place place = find_place(args, TokenRow(args));
    if (blockIdx.x == gridDim.x - 1) post_embedding(args, epoch);
#pragma unroll 1
    for (u32 i = 0; i < args.phase_count; ++i) {
        const Phase& phase = layout.phases[i];
        const Share& share = layout.shares[i];
        if (phase.kind == ATTENTION) {
            fill = attention_phase(args, phase, share.first, layout.work.input, layout.ring, fill, epoch);
        } else if (phase.kind == LOGITS) {
            logits_phase(args, phase, share, layout.ring, fill, layout.work, epoch);
        } else if (share.count > 0) {
            if (is_double(phase.kind)) {
                double_phase(args, phase, share, place, layout.ring, fill, layout.work, epoch);
            } else {
                single_phase(args, phase, share, layout.ring, fill, layout.work, epoch);
            }
            fill += share.count * share.pairs * (is_double(phase.kind) ? 2 : 1);
        }
        if (phase.kind == DOWN) ++epoch;
    }
    // All blocks have read it: this one has waited for what they all had a part in.
    if (blockIdx.x == 0 && threadIdx.x == 0) *args.epoch = epoch + 1;
}

extern "C" __global__ void __launch_bounds__(THREADS, 1) token(const TokenArgs args) {
    extern __shared__ __align__(1024) u8 shared[];
    launch_dependents();
    const Layout layout(args, shared);
    if (threadIdx.x == 0) layout.ring.init();
    copy_phases(args, layout);
    __syncthreads();
    if (threadIdx.x >= CONSUMERS) {
        produce(args, layout);
    } else {
        consume(args, layout);
    }
}
