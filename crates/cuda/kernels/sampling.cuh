// What the kernels of sampling share: their arguments, weights, and the walk along weights. Before this comes rank.cuh.

// Logits whose weights are added up in LANES chains, whose sums are added in turn.
constexpr u32 CHUNK = 1024;
constexpr int LANES = 16;
// A block of `largest` looks at a span, each of its threads at a group: EACH neighbours in each of PIECES sweeps.
constexpr int SPAN_THREADS = 128;
constexpr int EACH = 4;
constexpr int PIECES = 8;
constexpr u32 SWEEP = SPAN_THREADS * EACH;
constexpr u32 SPAN = SWEEP * PIECES;
// One block adds up a few chunks, with whole warps.
constexpr u32 SUM_CHUNKS = 2;
constexpr u32 SUM_THREADS = 256;
constexpr u32 SUM_PIECES = SUM_CHUNKS * CHUNK / (SUM_THREADS * EACH);
static_assert(SUM_CHUNKS * LANES % 32 == 0, "whole warps");
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
static_assert(ROOM * sizeof(u16) == MOST_RANKED * sizeof(float), "weights take the place of groups");

struct Request {
    double uniform;
    float inverse_temperature;
    float floor;
    // 1 where weights are to be added up for top-p, 2 for a draw from all.
    u32 sums;
    // Tokens to rank and draw from.
    u32 count;
    float top_p;
    float min_p;
    // Of the tokens seen.
    u32 first_seen;
    u32 end_seen;
    float repetition;
    float frequency;
    float presence;
    u32 unused;
};
static_assert(sizeof(Request) == 56, "as the host has it");

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
    // The token wished for; NOTHING where top-p keeps more than are ranked, or there are more candidates than room.
    key chosen;
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
    // Best key of each group, [rows][spans][SPAN_THREADS], and of each span, [rows][spans]. Where the kernel that computed
    // the logits has left best keys of shares of its own, these are spans, and there are no groups.
    key* groups;
    key* bests;
    // Wished sums of chunks, [rows][chunks].
    double* sums;
    // Results, of the host: [rows], sums at temperature 1 [rows][chunks], [all seen].
    Found* found;
    double* own_sums;
    float* unpenalised;
    u32 vocabulary;
    u32 stride;
    u32 spans;
    u32 chunks;
    // The batch of the run that starts behind, of the host and of the device; none where none does. Tokens come first in
    // it, and are those chosen; the words from next_first up to next_end, multiples of EACH, are copied.
    const u32* next_host;
    u32* next_batch;
    u32 next_first;
    u32 next_end;
};

// Gives the next run the token of a row. Where none could be chosen the run is in vain, but must not read beyond tables.
__device__ __forceinline__ void tell_next(const Args& args, u32 row, key chosen) {
    if (args.next_batch) args.next_batch[row] = u32(chosen) < args.vocabulary ? u32(chosen) : 0;
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

// Weights that are added in one go where it does not matter which of them is last.
constexpr u32 STRIDE = 16;

// Index of the weight into which `target` falls when the weights lie end to end; what is left of `target`. A difference
// is negative exactly where the target is less than the weight, and stays so: the chain of differences is followed
// STRIDE at a time, and looked at when it has become negative. Zeros follow the weights up to a whole stride.
template <class T>
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
