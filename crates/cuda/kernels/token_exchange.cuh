// How results pass from block to block within the token kernel: words of eight bytes in global memory, 32 bits of data and
// the epoch that they belong to. A word is stored at once and read until it has the epoch that is waited for, so that
// neither fences nor barriers across blocks are needed: the data is its own flag.
//
// Every layer of every token has an epoch of its own. Buffers are not doubled: a word of a phase is replaced a layer later,
// by a block that has by then waited for something that every reader of the word had a part in after it had read it. For
// whoever reads a buffer in a phase adds to what that phase stores, and all that a phase stores is waited for, directly or
// through the phases between, by every block that stores a word of the same phase in the next layer.

// Threads that consume; the producer's warp takes no part in their barrier.
constexpr u32 CONSUMER_WARPS = 11, CONSUMERS = CONSUMER_WARPS * 32;

__device__ __forceinline__ void consumers_sync() { asm volatile("bar.sync 1, %0;" ::"n"(CONSUMERS) : "memory"); }

// Traps after about a second: a wait that does not end is a mistake in the phases.
struct Patience {
    u32 left = 2000000;
    __device__ __forceinline__ void spend() {
        if (--left == 0) asm volatile("trap;");
    }
};

// Keeps a number in a register: the compiler would compute it again wherever it is needed, which takes instructions when
// words have just come.
__device__ __forceinline__ u32 kept(u32 x) {
    asm volatile("mov.b32 %0, %0;" : "+r"(x));
    return x;
}
__device__ __forceinline__ const u64* kept(const u64* x) {
    asm volatile("mov.b64 %0, %0;" : "+l"(x));
    return x;
}

__device__ __forceinline__ void post(u64* word, u32 data, u32 epoch) {
    const u64 both = u64(epoch) << 32 | data;
    asm volatile("st.relaxed.gpu.global.b64 [%0], %1;" ::"l"(word), "l"(both) : "memory");
}

__device__ __forceinline__ void post_two(u64* words, u32 a, u32 b, u32 epoch) {
    const u64 first = u64(epoch) << 32 | a, second = u64(epoch) << 32 | b;
    asm volatile("st.relaxed.gpu.global.v2.b64 [%0], {%1, %2};" ::"l"(words), "l"(first), "l"(second) : "memory");
}

__device__ __forceinline__ u64 look(const u64* word) {
    u64 both;
    asm volatile("ld.relaxed.gpu.global.b64 %0, [%1];" : "=l"(both) : "l"(word) : "memory");
    return both;
}

// Data and epoch of two neighbouring words, aligned to 16 bytes.
__device__ __forceinline__ uint4 peek_two(const u64* words) {
    u64 a, b;
    asm volatile("ld.relaxed.gpu.global.v2.b64 {%0, %1}, [%2];" : "=l"(a), "=l"(b) : "l"(words) : "memory");
    return make_uint4(u32(a), u32(a >> 32), u32(b), u32(b >> 32));
}
__device__ __forceinline__ bool are_of(uint4 two, u32 epoch) { return two.y == epoch && two.w == epoch; }

// The data of a word that may have been looked at before.
__device__ __forceinline__ u32 take(const u64* word, u64 seen, u32 epoch) {
    Patience patience;
    while (u32(seen >> 32) != epoch) {
        patience.spend();
        seen = look(word);
    }
    return u32(seen);
}

// COUNT pairs of words, of which number i, if it is below `count`, lies STEP words after the one before.
template <int COUNT, int STEP>
struct Asked {
    const u64* words;
    u32 count;
    uint4 seen[COUNT];

    // Asks for all of them.
    __device__ __forceinline__ Asked(const u64* first, u32 count) : words(kept(first)), count(count) {
#pragma unroll
        for (int i = 0; i < COUNT; ++i) {
            seen[i] = make_uint4(0, 0, 0, 0);
            if (i < count) seen[i] = peek_two(words + i * STEP);
        }
    }
    // Asks for those that are missing until all are there.
    __device__ __forceinline__ void settle(u32 epoch) {
        Patience patience;
        bool missing = true;
        while (missing) {
            patience.spend();
            missing = false;
#pragma unroll
            for (int i = 0; i < COUNT; ++i) {
                if (i < count && !are_of(seen[i], epoch)) {
                    seen[i] = peek_two(words + i * STEP);
                    missing = true;
                }
            }
        }
    }
    __device__ __forceinline__ uint2 data(int i) const { return make_uint2(seen[i].x, seen[i].z); }
};

// Where a word of `hidden` and `middle` lies: 32 bytes of each 128. All blocks wait for these few words at the same time, and
// more lines are in more parts of the second-level cache.
__device__ constexpr u32 spread(u32 word) { return word / 4 * 16 + word % 4; }
