// What a sampler needs of rows of f32 logits, bit for bit as mantissa_ops::reduction defines it: the largest, sums of
// weights, the best-ranked tokens, the end of a draw. Rows go along the y or, in kernels of one block a row, the x axis
// of the grid.
//
// The order: largest; sums of the logits as they are; where there are penalties, these, and largest again; then what
// is wished for; then restore. A row that holds a NaN or an infinity shows by a best key of 0, which no number has; what
// else is found of it means nothing. Results go to memory of the host, which is written only. Aliases of sums: WISHED 1
// for those of the request, else at temperature 1; of penalties: RESTORE 1 to take them back.

// Logits whose weights are added up in LANES chains, whose sums are added in turn.
constexpr u32 CHUNK = 1024;
constexpr int LANES = 16;
// A block of `largest` looks at a span, each of its threads at a group: EACH neighbours in each of PIECES sweeps.
constexpr int SPAN_THREADS = 128;
constexpr int EACH = 4;
constexpr int PIECES = 8;
constexpr u32 SWEEP = SPAN_THREADS * EACH;
constexpr u32 SPAN = SWEEP * PIECES;
// One block adds up a chunk.
constexpr int SUM_THREADS = 64;
constexpr u32 SUM_PIECES = CHUNK / (SUM_THREADS * EACH);
// One block ranks for a row. What is done by one warp of it costs the more time, the more others there are.
constexpr int RANK_THREADS = 256;
constexpr int RANK_WARPS = RANK_THREADS / 32;
// Groups of the longest row, and chunks.
constexpr u32 MOST_GROUPS = 8192;
constexpr u32 MOST_CHUNKS = MOST_GROUPS * EACH * PIECES / CHUNK;
constexpr int GROUPS_EACH = MOST_GROUPS / RANK_THREADS;
// Tokens that one request can have ranked, and candidates for them.
constexpr u32 MOST_RANKED = 2048;
constexpr u32 ROOM = 2 * MOST_RANKED;

// Rank keys: the logit, in descending order, above the token. Smaller is better.
using key = u64;
constexpr key NOTHING = ~0ull;

struct Request {
    double uniform;
    float inverse_temperature;
    float floor;
    // 1 where weights are to be added up, 2 where the sum is to be drawn from, too.
    u32 sums;
    // Tokens to rank.
    u32 count;
    // Of the tokens seen.
    u32 first_seen;
    u32 end_seen;
    float repetition;
    float frequency;
    float presence;
    u32 unused;
};
static_assert(sizeof(Request) == 48, "as the host has it");

struct Seen {
    u32 token;
    u32 generated;
};

struct Saved {
    u32 token;
    float logit;
};

struct Found {
    key largest;
    key drawn;
    // Keys that were ranked; all ones where there were more candidates than room.
    u32 ranked;
    u32 unused;
};

struct Args {
    // [rows][stride].
    float* logits;
    // [rows], of the host and their copy; no host's where no row wishes for more than `largest` and `sums`.
    const Request* host_requests;
    Request* requests;
    // [all seen], of the host.
    const Seen* seen;
    Saved* saved;
    // Best key of each group, [rows][spans][SPAN_THREADS], and of each span, [rows][spans].
    key* groups;
    key* bests;
    // Wished sums of chunks, [rows][chunks].
    double* sums;
    // Results, of the host: [rows]; both sums [rows][chunks]; [rows][MOST_RANKED]; [all seen].
    Found* found;
    double* own_sums;
    double* wished_sums;
    key* ranked;
    float* unpenalised;
    u32 vocabulary;
    u32 stride;
    u32 spans;
    u32 chunks;
};

__device__ __forceinline__ key rank_key(float logit, u32 token) {
    // Adding 0 makes -0 to 0.
    u32 bits = bits_of(logit + 0.0f);
    u32 descending = bits >> 31 ? bits : ~bits & 0x7fffffff;
    bool finite = (bits & 0x7f800000) != 0x7f800000;
    return finite ? u64(descending) << 32 | token : 0;
}

__device__ __forceinline__ float logit_of(key k) {
    u32 descending = u32(k >> 32);
    return float_of(descending >> 31 ? descending : ~descending & 0x7fffffff);
}

__device__ __forceinline__ key warp_best(key best) {
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2) best = minimum(best, __shfl_xor_sync(FULL_WARP, best, offset));
    return best;
}

// The best key of a row, in every lane.
__device__ __forceinline__ key row_best(const Args& args, u32 row) {
    key best = NOTHING;
    for (u32 i = threadIdx.x % 32; i < args.spans; i += 32) best = minimum(best, args.bests[row * args.spans + i]);
    return warp_best(best);
}

// e^x for x up to 0 as reduction/softmax.rs has it.
__device__ __forceinline__ float exp_up_to_zero(float x) {
    const float shift = 12582912.0f, smallest = -87.0f;
    float bounded = x > smallest ? x : smallest;
    float shifted = bounded * 1.44269504088896340736f + shift;
    float n = shifted - shift;
    float r = (bounded - n * (355.0f / 512.0f)) - n * -2.1219444e-4f;
    float series = 1.0f / 5040.0f;
    series = series * r + 1.0f / 720.0f;
    series = series * r + 1.0f / 120.0f;
    series = series * r + 1.0f / 24.0f;
    series = series * r + 1.0f / 6.0f;
    series = series * r + 1.0f / 2.0f;
    series = series * r + 1.0f;
    series = series * r + 1.0f;
    float two_to_n = float_of((bits_of(shifted) << 23) + (127u << 23));
    return x > smallest ? series * two_to_n : 0.0f;
}

struct Softmax {
    float max;
    float inverse_temperature;
    float floor;

    __device__ __forceinline__ float weight(float logit) const {
        float weight = exp_up_to_zero((logit - max) * inverse_temperature);
        return weight >= floor ? weight : 0.0f;
    }
};

// The best key of every group and span.
extern "C" __global__ __launch_bounds__(SPAN_THREADS) void largest(const Args args) {
    __shared__ key of_warp[SPAN_THREADS / 32];
    launch_dependents();
    wait_for_inputs();
    u32 row = blockIdx.y, first = blockIdx.x * SPAN + threadIdx.x * EACH;
    const float* logits = args.logits + u64(row) * args.stride;
    Few<f32, EACH> few[PIECES];
#pragma unroll
    for (u32 i = 0; i < PIECES; ++i) {
        u32 at = first + i * SWEEP;
        if (at < args.vocabulary) few[i] = load_few<f32, EACH>(logits + at);
    }
    constexpr u32 words = sizeof(Request) / 4;
    if (args.host_requests && blockIdx.x == 0 && threadIdx.x < words) {
        // Once from the host for all that follow.
        reinterpret_cast<u32*>(args.requests + row)[threadIdx.x] =
            reinterpret_cast<const u32*>(args.host_requests + row)[threadIdx.x];
    }
    key best = NOTHING;
#pragma unroll
    for (u32 i = 0; i < PIECES; ++i) {
        u32 at = first + i * SWEEP;
        float x[EACH];
        decode(few[i], x);
#pragma unroll
        for (u32 j = 0; j < EACH; ++j) {
            if (at + j < args.vocabulary) best = minimum(best, rank_key(x[j], at + j));
        }
    }
    u64 span = u64(row) * args.spans + blockIdx.x;
    args.groups[span * SPAN_THREADS + threadIdx.x] = best;
    best = warp_best(best);
    if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = best;
    __syncthreads();
    if (threadIdx.x == 0) {
#pragma unroll
        for (int i = 1; i < SPAN_THREADS / 32; ++i) best = minimum(best, of_warp[i]);
        args.bests[span] = best;
    }
}

// The sum of the weights of one chunk: each chain ascending, then the chains. Few threads to a block, as most of them
// wait for those that add.
extern "C" __global__ __launch_bounds__(SUM_THREADS) void sums(const Args args) {
    __shared__ float weights[CHUNK];
    launch_dependents();
    wait_for_inputs();
    u32 row = blockIdx.y, first = threadIdx.x * EACH, start = blockIdx.x * CHUNK;
    u32 inside = minimum(args.vocabulary - start, CHUNK);
    const float* logits = args.logits + u64(row) * args.stride + start;
    Few<f32, EACH> few[SUM_PIECES];
#pragma unroll
    for (u32 i = 0; i < SUM_PIECES; ++i) {
        u32 at = first + i * SUM_THREADS * EACH;
        if (at < inside) few[i] = load_few<f32, EACH>(logits + at);
    }
    key best = row_best(args, row);
    Softmax softmax = {logit_of(best), 1.0f, 0.0f};
    if (WISHED) {
        const Request& request = args.requests[row];
        if (request.sums == 0) return;
        softmax.inverse_temperature = request.inverse_temperature;
        softmax.floor = request.floor;
    }
#pragma unroll
    for (u32 i = 0; i < SUM_PIECES; ++i) {
        u32 at = first + i * SUM_THREADS * EACH;
        float x[EACH];
        decode(few[i], x);
#pragma unroll
        for (u32 j = 0; j < EACH; ++j) weights[at + j] = at + j < inside ? softmax.weight(x[j]) : 0.0f;
    }
    __syncthreads();
    if (threadIdx.x >= LANES) return;
    double lane = 0.0;
#pragma unroll
    for (u32 i = 0; i < CHUNK; i += LANES) lane = lane + double(weights[i + threadIdx.x]);
    double sum = 0.0;
#pragma unroll
    for (int i = 0; i < LANES; ++i) sum = sum + __shfl_sync((1u << LANES) - 1, lane, i);
    if (threadIdx.x != 0) return;
    u64 chunk = u64(row) * args.chunks + blockIdx.x;
    if (WISHED) {
        args.sums[chunk] = sum;
        args.wished_sums[chunk] = sum;
    } else {
        args.own_sums[chunk] = sum;
        if (blockIdx.x == 0) args.found[row].largest = best;
    }
}

__device__ __forceinline__ float penalise(const Request& request, float logit, u32 generated) {
    float penalised = logit > 0.0f ? divide(logit, request.repetition) : logit * request.repetition;
    if (generated > 0) {
        penalised = penalised - request.frequency * float(generated);
        penalised = penalised - request.presence;
    }
    const float most = float_of(0x7f7fffff);
    return penalised < -most ? -most : penalised > most ? most : penalised;
}

// Replaces the logits of the tokens seen, or puts them back. One block a row.
extern "C" __global__ __launch_bounds__(256) void penalties(const Args args) {
    launch_dependents();
    wait_for_inputs();
    const Request& request = args.requests[blockIdx.x];
    float* logits = args.logits + u64(blockIdx.x) * args.stride;
    for (u32 i = request.first_seen + threadIdx.x; i < request.end_seen; i += blockDim.x) {
        if (RESTORE) {
            logits[args.saved[i].token] = args.saved[i].logit;
        } else {
            Seen seen = args.seen[i];
            float logit = logits[seen.token];
            args.saved[i] = Saved{seen.token, logit};
            args.unpenalised[i] = logit;
            logits[seen.token] = penalise(request, logit, seen.generated);
        }
    }
}

// The sum of x over the block. `shared` holds two rounds of RANK_WARPS numbers, used in turn.
__device__ __forceinline__ u32 block_count(u32 x, u32* shared, u32& round) {
    u32* mine = shared + (round++ & 1) * RANK_WARPS;
    x = __reduce_add_sync(FULL_WARP, x);
    if (threadIdx.x % 32 == 0) mine[threadIdx.x / 32] = x;
    __syncthreads();
    u32 sum = 0;
#pragma unroll
    for (int i = 0; i < RANK_WARPS; ++i) sum += mine[i];
    return sum;
}

// Sorts `count` keys, a power of two, ascending (Batcher's bitonic network). Keys that a warp compares with each other
// lie among 64 of its own as long as they are near.
__device__ __forceinline__ void sort(key* keys, u32 count) {
    for (u32 size = 2; size <= count; size *= 2) {
        for (u32 distance = size / 2; distance > 0; distance /= 2) {
            for (u32 i = threadIdx.x; i < count / 2; i += RANK_THREADS) {
                u32 low = 2 * i - (i & (distance - 1)), high = low + distance;
                key a = keys[low], b = keys[high];
                if ((a > b) == ((low & size) == 0)) {
                    keys[low] = b;
                    keys[high] = a;
                }
            }
            if (distance > 32 || (distance == 1 && size > 32)) {
                __syncthreads();
            } else {
                __syncwarp();
            }
        }
    }
    __syncthreads();
}

// A bound that at least `wanted` of the keys of all threads are below, and not many more, or all of them. Keys are
// distinct; none is below `low`, which is not 0.
__device__ __forceinline__ key bound_above(const key (&mine)[GROUPS_EACH], u32 wanted, key low, u32* counts) {
    key my_best = mine[0], bound = NOTHING;
#pragma unroll
    for (int i = 1; i < GROUPS_EACH; ++i) my_best = minimum(my_best, mine[i]);
    u32 round = 0, most = wanted + wanted / 4 + 8;
    auto count_below = [&](key limit) {
        // The best keys of threads do as well where there are many more of them than are wanted.
        if (wanted <= RANK_THREADS / 4) return u32(__syncthreads_count(my_best < limit));
        u32 count = 0;
#pragma unroll
        for (int i = 0; i < GROUPS_EACH; ++i) count += mine[i] < limit;
        return block_count(count, counts, round);
    };
    // Fewer than wanted are below `low`; below `bound` there are at least as many, or all.
    for (u32 count = count_below(bound); count > most && bound - low > 1;) {
        key middle = low + (bound - low) / 2;
        u32 below_middle = count_below(middle);
        if (below_middle < wanted) {
            low = middle;
        } else {
            bound = middle;
            count = below_middle;
        }
    }
    return bound;
}

// The best tokens in order. A bound that as many groups' best keys stay below as tokens are wanted, or some more, lies
// above the wanted tokens; only those groups have logits below it. One block a row.
extern "C" __global__ __launch_bounds__(RANK_THREADS, 1) void rank(const Args args) {
    constexpr u32 AHEAD = 4;
    __shared__ key candidates[ROOM];
    __shared__ u16 below[ROOM];
    __shared__ u32 counts[2 * RANK_WARPS], groups_below, passed;
    launch_dependents();
    wait_for_inputs();
    u32 row = blockIdx.x, wanted = args.requests[row].count, groups = args.spans * SPAN_THREADS;
    key mine[GROUPS_EACH];
#pragma unroll
    for (int i = 0; i < GROUPS_EACH; ++i) {
        u32 group = threadIdx.x + i * RANK_THREADS;
        mine[i] = group < groups ? args.groups[u64(row) * groups + group] : NOTHING;
    }
    key low = row_best(args, row);
    // Keys of a row with a best key of 0 are not distinct.
    if (wanted == 0 || low == 0) return;
    key bound = bound_above(mine, wanted, low, counts);
    if (threadIdx.x == 0) groups_below = passed = 0;
    __syncthreads();
#pragma unroll
    for (int i = 0; i < GROUPS_EACH; ++i) {
        if (mine[i] >= bound) continue;
        u32 slot = atomicAdd(&groups_below, 1);
        if (slot < ROOM) below[slot] = u16(threadIdx.x + i * RANK_THREADS);
    }
    __syncthreads();
    const float* logits = args.logits + u64(row) * args.stride;
    u32 pieces = minimum(groups_below, ROOM) * PIECES;
    for (u32 first = threadIdx.x; first < pieces; first += AHEAD * RANK_THREADS) {
        Few<f32, EACH> few[AHEAD];
        u32 at[AHEAD];
#pragma unroll
        for (u32 i = 0; i < AHEAD; ++i) {
            u32 piece = first + i * RANK_THREADS;
            u32 group = below[minimum(piece, pieces - 1) / PIECES];
            at[i] = group / SPAN_THREADS * SPAN + piece % PIECES * SWEEP + group % SPAN_THREADS * EACH;
            if (piece >= pieces) at[i] = args.vocabulary;
            if (at[i] < args.vocabulary) few[i] = load_few<f32, EACH>(logits + at[i]);
        }
#pragma unroll
        for (u32 i = 0; i < AHEAD; ++i) {
            float x[EACH];
            decode(few[i], x);
#pragma unroll
            for (u32 j = 0; j < EACH; ++j) {
                key k = rank_key(x[j], at[i] + j);
                if (at[i] + j >= args.vocabulary || k >= bound) continue;
                u32 slot = atomicAdd(&passed, 1);
                if (slot < ROOM) candidates[slot] = k;
            }
        }
    }
    __syncthreads();
    u32 kept = minimum(passed, ROOM), size = 2;
    while (size < kept) size *= 2;
    for (u32 i = kept + threadIdx.x; i < size; i += RANK_THREADS) candidates[i] = NOTHING;
    __syncthreads();
    sort(candidates, size);
    u32 ranked = minimum(kept, minimum(wanted, MOST_RANKED));
    for (u32 i = threadIdx.x; i < ranked; i += RANK_THREADS) args.ranked[u64(row) * MOST_RANKED + i] = candidates[i];
    if (threadIdx.x == 0) args.found[row].ranked = maximum(passed, groups_below) > ROOM ? ~0u : ranked;
}

// Index of the weight into which `target` falls when the weights lie end to end; what is left of `target`. A difference
// is negative exactly where the target is less than the weight, and stays so: the chain of differences is followed
// STRIDE at a time, and looked at when it has become negative.
template <int STRIDE, class T>
__device__ __forceinline__ u32 walk(const T* weights, u32 count, double& target) {
    for (u32 first = 0; first < count; first += STRIDE) {
        double rest = target;
#pragma unroll
        for (u32 i = 0; i < STRIDE; ++i) rest = rest - double(weights[first + i]);
        if (rest < 0.0) {
            u32 i = first;
            while (target >= double(weights[i])) target = target - double(weights[i++]);
            return i;
        }
        target = rest;
    }
    // Rounding has put the target beyond the end.
    u32 last = count;
    while (last > 1 && weights[last - 1] == 0) --last;
    return last - 1;
}

// The token in which a draw from the wished sums ends. One block a row, a thread for each logit of a chunk; the walk is one thread's, as its additions are
// in a fixed order.
extern "C" __global__ __launch_bounds__(CHUNK, 1) void draw(const Args args) {
    __shared__ double chunk_sums[MOST_CHUNKS];
    __shared__ float weights[CHUNK];
    __shared__ u32 chunk;
    launch_dependents();
    wait_for_inputs();
    u32 row = blockIdx.x;
    const Request& request = args.requests[row];
    if (request.sums != 2) return;
    if (threadIdx.x < MOST_CHUNKS) {
        bool there = threadIdx.x < args.chunks;
        chunk_sums[threadIdx.x] = there ? args.sums[u64(row) * args.chunks + threadIdx.x] : 0.0;
    }
    Softmax softmax = {logit_of(row_best(args, row)), request.inverse_temperature, request.floor};
    __syncthreads();
    double target = 0.0;
    if (threadIdx.x == 0) {
        double total = 0.0;
#pragma unroll 16
        for (u32 i = 0; i < args.chunks; ++i) total = total + chunk_sums[i];
        target = request.uniform * total;
        chunk = walk<16>(chunk_sums, round_up(args.chunks, 16), target);
    }
    __syncthreads();
    const float* logits = args.logits + u64(row) * args.stride;
    u32 at = chunk * CHUNK + threadIdx.x;
    weights[threadIdx.x] = at < args.vocabulary ? softmax.weight(logits[at]) : 0.0f;
    __syncthreads();
    if (threadIdx.x == 0) {
        u32 token = chunk * CHUNK + walk<16>(weights, CHUNK, target);
        args.found[row].drawn = rank_key(logits[token], token);
    }
}
