// A block's ring of slots in shared memory, through which all that it multiplies passes in one order: one warp, the
// producer, copies ahead across phases as far as there are slots, while the other warps wait for activations. The copies
// under way are bounded: words of the exchange would else queue behind them.

constexpr u32 FILL_BYTES = 8192;
// Fills that the producer looks at together.
constexpr u32 GROUP_FILLS = minimum(u32(FLIGHT), 8u);

__device__ __forceinline__ void barrier_init(u32 barrier, u32 count) {
    asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(barrier), "r"(count) : "memory");
}

// Whether the barrier's phase of this parity is complete. An answer takes more than a hundred cycles, however many ask.
__device__ __forceinline__ bool barrier_is_done(u32 barrier, u32 parity) {
    u32 done;
    asm volatile("{\n.reg .pred p;\nmbarrier.test_wait.parity.shared.b64 p, [%1], %2;\nselp.u32 %0, 1, 0, p;\n}"
                 : "=r"(done) : "r"(barrier), "r"(parity) : "memory");
    return done != 0;
}

// Makes the block see a map as the host wrote it. The copy engine keeps maps in a cache of its own, which may still have one
// that lay at the same address before, of a session that has ended.
__device__ __forceinline__ void acquire_map(const TensorMap* map) {
    asm volatile("fence.proxy.tensormap::generic.acquire.sys [%0], 128;" ::"l"(map) : "memory");
}

// Starts copying a box, whose bytes `barrier` counts. It is read once, and may leave the second-level cache first.
__device__ __forceinline__ void copy_box(u32 to, const TensorMap* map, u32 x, u32 y, u32 z, u32 barrier) {
    const u64 evict_first = 0x12f0000000000000;
    asm volatile(
        "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint "
        "[%0], [%1, {%2, %3, %4}], [%5], %6;" ::"r"(to), "l"(map), "r"(x), "r"(y), "r"(z), "r"(barrier), "l"(evict_first)
        : "memory");
}

__device__ __forceinline__ void store_shared(u32 address, u32 x) {
    asm volatile("st.shared.u32 [%0], %1;" ::"r"(address), "r"(x) : "memory");
}

__device__ __forceinline__ float2 load_shared_two(u32 address) {
    float2 two;
    asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(two.x), "=f"(two.y) : "r"(address) : "memory");
    return two;
}

// Fills are numbered from zero over the whole token; each is consumed by one warp. A warp that looks for a fill knows that
// the one before it in the same slot has landed: what earlier phases had was consumed before their last barrier, and of its
// own phase either the fill is among the first 2 CONSUMER_WARPS, or the last one that it has consumed is at most
// CONSUMER_WARPS before, and the producer has seen those land that were `flight` before that.
static_assert(maximum(FLIGHT, LAST_FLIGHT) + CONSUMER_WARPS <= SLOTS && 2 * CONSUMER_WARPS <= SLOTS,
              "else a barrier's parity says nothing");

struct Ring {
    u32 slots;
    // Whether a slot has been filled, then, SLOTS barriers later, whether it is free again.
    u32 barriers;
    // The producer's next fill: its slot, and how often all slots have been filled before.
    u32 slot;
    u32 turn;
    // How many fills may be started without another look.
    u32 ready;
    // How many may be under way: FLIGHT, and LAST_FLIGHT of logits, behind which no words are waited for.
    u32 flight;

    // By one thread, before a barrier of the block.
    __device__ __forceinline__ void init() const {
        for (u32 i = 0; i < 2 * SLOTS; ++i) barrier_init(barriers + i * 8, 1);
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }

    // The producer looks how many of the next fills have a free slot, and at those that have to land before: each lane at one
    // barrier, of a free slot in the lower half of the warp, of a fill in the upper one.
    __device__ __forceinline__ void look() {
        const u32 lane = threadIdx.x % 32, ahead = lane % 16;
        const bool is_fill = lane >= 16;
        u32 at = slot + ahead, turns = turn;
        if (is_fill) {
            turns = at < flight ? turns : turns + 1;
            at = at < flight ? at + SLOTS - flight : at - flight;
        }
        turns = at < SLOTS ? turns : turns + 1;
        at = at < SLOTS ? at : at - SLOTS;
        bool ok = ahead < GROUP_FILLS;
        if (ok && turns > 0) ok = barrier_is_done(barriers + (is_fill ? at : at + SLOTS) * 8, turns - 1 & 1);
        const u32 all = __ballot_sync(FULL_WARP, ok);
        ready = __ffs(~(all & all >> 16)) - 1;
    }
    // The producer: where the next fill goes, when that is free and there are few enough under way.
    __device__ __forceinline__ u32 claim() {
        Patience patience;
        while (ready == 0) {
            patience.spend();
            look();
        }
        --ready;
        return slots + slot * FILL_BYTES;
    }
    // What the copies of the next fill count on.
    __device__ __forceinline__ u32 barrier() const { return barriers + slot * 8; }
    // One lane of the producer, before it starts the copies that together are the fill.
    __device__ __forceinline__ void expect(u32 bytes) const {
        asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" ::"r"(barrier()), "r"(bytes) : "memory");
    }
    __device__ __forceinline__ void commit() {
        ++slot;
        turn = slot == SLOTS ? turn + 1 : turn;
        slot = slot == SLOTS ? 0 : slot;
    }

    __device__ __forceinline__ u32 at(u32 fill) const { return slots + fill % SLOTS * FILL_BYTES; }
    // A consuming warp: whether the fill is there.
    __device__ __forceinline__ bool has(u32 fill) const {
        return barrier_is_done(barriers + fill % SLOTS * 8, fill / SLOTS & 1);
    }
    // A consuming warp: which of two fills are there, at the price of one look.
    __device__ __forceinline__ void look_at(u32 fill, u32 other, bool& has_fill, bool& has_other) const {
        u32 first, second;
        asm volatile("{\n.reg .pred p, q;\nmbarrier.test_wait.parity.shared.b64 p, [%2], %3;\n"
                     "mbarrier.test_wait.parity.shared.b64 q, [%4], %5;\nselp.u32 %0, 1, 0, p;\nselp.u32 %1, 1, 0, q;\n}"
                     : "=r"(first), "=r"(second)
                     : "r"(barriers + fill % SLOTS * 8), "r"(fill / SLOTS & 1), "r"(barriers + other % SLOTS * 8),
                       "r"(other / SLOTS & 1)
                     : "memory");
        has_fill = first != 0;
        has_other = second != 0;
    }
    // A consuming warp: the fill, once it is there.
    __device__ __forceinline__ u32 wait(u32 fill) const {
        Patience patience;
        while (!has(fill)) patience.spend();
        return at(fill);
    }
    // A consuming warp: it has read all of the fill. Where reads went to registers, `read` is computed from all of them, and
    // which lane arrives depends on it: an arrival alone overtakes reads that are still on their way, and the copy engine then
    // overwrites what they have yet to read.
    __device__ __forceinline__ void release(u32 fill, u32 read) const {
        const u32 lane = __shfl_sync(FULL_WARP, read, 0) % 32;
        if (threadIdx.x % 32 == lane) {
            asm volatile("mbarrier.arrive.shared.b64 _, [%0];" ::"r"(barriers + (SLOTS + fill % SLOTS) * 8) : "memory");
        }
    }
};
