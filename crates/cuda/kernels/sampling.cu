// From rows of f32 logits to tokens, bit for bit as mantissa_ops::reduction defines it. Rows go along the y or, in kernels of
// one block a row, the x axis of the grid.
//
// The order: largest; sums of the logits as they are; where there are penalties, these, and largest again; then what
// is wished for: sums, rank, draw; then restore. A row that holds a NaN or an infinity shows by a best key of 0, which no
// number has; what else is found of it means nothing. Results go to memory of the host, which is written only, and which the
// host watches: each is one store of 4 or 8 bytes. Aliases of sums: WISHED 1 for those of the request, else at temperature 1;
// FIRST 1 where best keys are there already, so that nothing comes before; of penalties: RESTORE 1 to take them back.

// Brings the next batch to the device. The host's words are far away: as many as most batches have are on their way at a
// time.
__device__ __forceinline__ void bring_next(const Args& args) {
    using Words = Few<f32, EACH>;
    constexpr u32 AHEAD = 8;
    const f32* host = reinterpret_cast<const f32*>(args.next_host);
    const u32 sweep = blockDim.x * EACH;
    for (u32 start = args.next_first + threadIdx.x * EACH; start < args.next_end; start += AHEAD * sweep) {
        Words words[AHEAD];
#pragma unroll
        for (u32 i = 0; i < AHEAD; ++i) {
            if (start + i * sweep < args.next_end) words[i] = load_few<f32, EACH>(host + start + i * sweep);
        }
#pragma unroll
        for (u32 i = 0; i < AHEAD; ++i) {
            const u32 at = start + i * sweep;
            if (at < args.next_end) *reinterpret_cast<Words*>(args.next_batch + at) = words[i];
        }
    }
}

// The best key of every group and span.
extern "C" __global__ __launch_bounds__(SPAN_THREADS) void largest(const Args args) {
    __shared__ key of_warp[SPAN_THREADS / 32];
    launch_dependents();
    wait_for_inputs();
    u32 row = blockIdx.y, first = blockIdx.x * SPAN + threadIdx.x * EACH;
    if (blockIdx.x == args.spans) {
        // A block beyond the last span.
        if (row == 0) bring_next(args);
        return;
    }
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

// What is found of a row whose best token is wished for.
__device__ __forceinline__ void tell_best(const Args& args, u32 row, key best) {
    args.found[row].largest = best;
    tell_next(args, row, best);
}

// What a block beyond the chunks does where nothing comes before the sums. The host may replace its batch as soon as it sees
// what was found: not before that has been read.
__device__ __forceinline__ void begin(const Args& args, u32 row) {
    if (row == 0) bring_next(args);
    __syncthreads();
    const key best = row_best(args, row);
    if (threadIdx.x == 0) tell_best(args, row, best);
}

// Sums of the weights of chunks: each chain ascending, then the chains of a chunk. A block has several, so that neighbours
// go to the host together.
extern "C" __global__ __launch_bounds__(SUM_THREADS) void sums(const Args args) {
    // Apart, so that chains of two chunks are in different banks.
    constexpr u32 APART = CHUNK + LANES;
    __shared__ float weights[SUM_CHUNKS * APART];
    __shared__ double chunk_sums[SUM_CHUNKS];
    launch_dependents();
    wait_for_inputs();
    u32 row = blockIdx.y, start = blockIdx.x * SUM_CHUNKS * CHUNK;
    if (FIRST && start >= args.vocabulary) return begin(args, row);
    u32 inside = minimum(args.vocabulary - start, SUM_CHUNKS * CHUNK);
    const float* logits = args.logits + u64(row) * args.stride + start;
    Few<f32, EACH> few[SUM_PIECES];
#pragma unroll
    for (u32 i = 0; i < SUM_PIECES; ++i) {
        u32 at = (i * SUM_THREADS + threadIdx.x) * EACH;
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
        u32 at = (i * SUM_THREADS + threadIdx.x) * EACH, to = at / CHUNK * APART + at % CHUNK;
        float x[EACH];
        decode(few[i], x);
#pragma unroll
        for (u32 j = 0; j < EACH; ++j) weights[to + j] = at + j < inside ? softmax.weight(x[j]) : 0.0f;
    }
    __syncthreads();
    if (threadIdx.x < SUM_CHUNKS * LANES) {
        u32 chunk = threadIdx.x / LANES;
        double lane = 0.0, sum = 0.0;
#pragma unroll
        for (u32 i = 0; i < CHUNK; i += LANES) {
            lane = lane + double(weights[chunk * APART + i + threadIdx.x % LANES]);
        }
#pragma unroll
        for (int i = 0; i < LANES; ++i) sum = sum + __shfl_sync(FULL_WARP, lane, i, LANES);
        chunk_sums[chunk] = sum;
    }
    __syncthreads();
    u32 chunk = blockIdx.x * SUM_CHUNKS + threadIdx.x;
    if (threadIdx.x >= SUM_CHUNKS || chunk >= args.chunks) return;
    u64 at = u64(row) * args.chunks + chunk;
    if (WISHED) {
        args.sums[at] = chunk_sums[threadIdx.x];
    } else {
        args.own_sums[at] = chunk_sums[threadIdx.x];
        if (!FIRST && chunk == 0) tell_best(args, row, best);
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

// The sum of a row's chunks.
__device__ __forceinline__ double wished_sum(const Args& args, u32 row) {
    double sum = 0.0;
#pragma unroll 16
    for (u32 i = 0; i < args.chunks; ++i) sum = sum + args.sums[u64(row) * args.chunks + i];
    return sum;
}

// Adds weights up until they reach `mass`, and returns how many it takes, or all. As sums do not decrease, STRIDE weights are
// added at a time, and one by one only where the mass is reached. Zeros follow the weights up to a whole stride.
__device__ __forceinline__ u32 add_until(const float* weights, u32 count, double mass, double& sum) {
    for (u32 first = 0; first < count; first += STRIDE) {
        double next = sum;
#pragma unroll
        for (u32 i = 0; i < STRIDE; ++i) next = next + double(weights[first + i]);
        if (next >= mass) {
            u32 i = first;
            do sum = sum + double(weights[i++]);
            while (sum < mass);
            return i;
        }
        sum = next;
    }
    return count;
}

// Which of `count` ranked tokens a draw ends in; `count` where top-p keeps more. Those from `unlikely` on are below min-p.
// Work of one thread, as the additions are in a fixed order. Zeros follow the weights up to a whole stride.
__device__ __forceinline__ u32 draw_ranked(const Args& args, u32 row, float* weights, u32 count, u32 unlikely) {
    const Request& request = args.requests[row];
    double mass = double(infinity());
    if (request.top_p < 1.0f) {
        double all = 0.0;
        if (request.sums == 0) {
            add_until(weights, count, mass, all);
        } else {
            all = wished_sum(args, row);
        }
        mass = double(request.top_p) * all;
    }
    double sum = 0.0;
    u32 kept = add_until(weights, count, mass, sum);
    // Where nothing more could follow, rounding has left the sum of all short of its own mass.
    if (sum < mass && request.sums != 0 && request.count < args.vocabulary) return count;
    u32 likely = minimum(kept, unlikely);
    for (u32 i = likely; i < round_up(likely, STRIDE); ++i) weights[i] = 0.0f;
    if (likely < kept) {
        sum = 0.0;
        add_until(weights, likely, double(infinity()), sum);
    }
    double target = request.uniform * sum;
    return walk(weights, likely, target);
}

// Puts the keys of a row's groups that are below `bound` into `candidates`, as many as there is room for; `passed` counts all.
__device__ __forceinline__ void gather(
    const Args& args, u32 row, key bound, const u16* below, u32 groups, key* candidates, u32* passed) {
    constexpr u32 AHEAD = 4;
    const float* logits = args.logits + u64(row) * args.stride;
    u32 pieces = groups * PIECES;
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
                u32 slot = atomicAdd(passed, 1);
                if (slot < ROOM) candidates[slot] = k;
            }
        }
    }
}

// A draw from the best tokens. A bound that as many groups' best keys stay below as tokens are wanted, or some more, lies
// above the wanted tokens; only those groups have logits below it. One block a row.
extern "C" __global__ __launch_bounds__(RANK_THREADS, 1) void rank(const Args args) {
    __shared__ key candidates[ROOM];
    // Groups, and then weights.
    __shared__ __align__(16) u16 below[ROOM];
    __shared__ u32 counts[2 * RANK_WARPS], groups_below, passed, unlikely;
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
    gather(args, row, bound, below, minimum(groups_below, ROOM), candidates, &passed);
    __syncthreads();
    u32 kept = minimum(passed, ROOM), size = 2;
    while (size < kept) size *= 2;
    for (u32 i = kept + threadIdx.x; i < size; i += RANK_THREADS) candidates[i] = NOTHING;
    __syncthreads();
    sort(candidates, size);
    u32 ranked = minimum(kept, minimum(wanted, MOST_RANKED));
    const Request& request = args.requests[row];
    Softmax softmax = {logit_of(candidates[0]), request.inverse_temperature, 0.0f};
    float* weights = reinterpret_cast<float*>(below);
    if (threadIdx.x == 0) unlikely = ranked;
    __syncthreads();
    for (u32 i = threadIdx.x; i < round_up(ranked, STRIDE); i += RANK_THREADS) {
        weights[i] = i < ranked ? softmax.weight(logit_of(candidates[i])) : 0.0f;
        if (i < ranked && weights[i] < request.min_p) atomicMin(&unlikely, i);
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        u32 index = draw_ranked(args, row, weights, ranked, unlikely);
        bool found = index < ranked && maximum(passed, groups_below) <= ROOM;
        key chosen = found ? candidates[index] : NOTHING;
        args.found[row].chosen = chosen;
        tell_next(args, row, chosen);
    }
}

// The token in which a draw from the wished sums ends. One block a row, a thread for each logit of a chunk; the walk is
// one thread's, as its additions are in a fixed order.
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
        chunk = walk(chunk_sums, args.chunks, target);
    }
    __syncthreads();
    const float* logits = args.logits + u64(row) * args.stride;
    u32 at = chunk * CHUNK + threadIdx.x;
    weights[threadIdx.x] = at < args.vocabulary ? softmax.weight(logits[at]) : 0.0f;
    __syncthreads();
    if (threadIdx.x == 0) {
        u32 token = chunk * CHUNK + walk(weights, CHUNK, target);
        args.found[row].chosen = rank_key(logits[token], token);
        tell_next(args, row, token);
    }
}
