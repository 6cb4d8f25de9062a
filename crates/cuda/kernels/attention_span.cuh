// A span on the tensor cores: a warp has its keys and values in shared memory, multiplies them with the query heads of one
// key head, and leaves outputs and softmax there. What the kernels that decode share.
//
// Aliases: those of attention_mma.cuh, and GROUP (query heads of a key head).

// Query heads of a block, the rows of its matrix steps. With at most 8 the second half of the rows is not used. Wide heads
// are as many as their outputs fit shared memory.
constexpr int HEADS = minimum(GROUP, DIM > 128 ? 8 : 16);
constexpr int HALVES = HEADS > 8 ? 2 : 1;

// 16-byte packs of a vector in the steps of a chain, and from one vector to the next in shared memory. Eight neighbouring
// vectors have each of their packs in different banks: by their places within 128 bytes, which depend on the vector, where
// that is a whole number of packs, else by an odd number of packs from vector to vector.
constexpr int PER_PACK = Pack<C>::VALUES;
constexpr int PACKS = DIM_STEPS * 16 / PER_PACK;
constexpr bool SWIZZLED = PACKS % 8 == 0 || PACKS == 4;
constexpr int ROW_PACKS = SWIZZLED ? PACKS : PACKS | 1;
constexpr int ROW_BYTES = ROW_PACKS * 16;
// Positions that surely lie in one page.
constexpr u32 RUN = 16;

// Tiles of 16 dimensions that outputs are computed in at a time.
constexpr int AT_ONCE = DIM_STEPS % 4 == 0 ? 4 : DIM_STEPS % 2 == 0 ? 2 : 1;
// Merging: a thread has two neighbouring dimensions of a head.
constexpr u32 PAIRS = DIM / 2;

// Floats from one head's outputs to the next: lanes that store together do so in different banks.
constexpr int OUT_STRIDE = DIM_STEPS * 16 + 4;

// The keys or the values of a span in shared memory.
using Vectors = uint4[SPAN][ROW_PACKS];

// Its scales, where there are some.
struct __align__(8) SpanScales {
    float key[SCALED ? SPAN : 4];
    float value[SCALED ? SPAN : 4];
};

// What a span leaves: an output of each head, and its softmax.
using SpanOutputs = float[HEADS][OUT_STRIDE];
using SpanSoftmax = Softmax[HEADS];

// How a span is joined to the section's spans before it, and what the section is relative to in the end.
struct __align__(16) Joined {
    Factors by;
    float sum;
    float largest;
};

// What the spans of a section leave until they are merged.
struct Section {
    SpanOutputs outputs[SECTION];
    SpanSoftmax softmax[SECTION];
    Joined joined[SECTION][HEADS];
};

__device__ __forceinline__ u32 lane() { return threadIdx.x % 32; }
// The same in all lanes, in a way that the compiler sees.
__device__ __forceinline__ u32 warp() { return __shfl_sync(FULL_WARP, threadIdx.x / 32, 0); }

// Where a pack of a vector lies, in bytes. Vectors eight further lie 8 * ROW_BYTES further.
__device__ __forceinline__ u32 pack_offset(u32 position, u32 pack) {
    if (SWIZZLED) pack ^= PACKS == 4 ? position / 2 % 4 : position % 8;
    return position * ROW_BYTES + pack * 16;
}

// --------------------------------------------------------------------------------------------------------- copying

// The key vectors at which the runs of a span start: lane i has that of run i % 4.
__device__ __forceinline__ u32 find_runs(
    const CacheLayer& cache, const u32* block_table, u32 kv_head, Visible visible, u32 span
) {
    u32 position = span * SPAN + lane() % (SPAN / RUN) * RUN;
    return position < visible.end ? key_vector(cache, block_table, kv_head, position) : 0;
}

// The scales of a span on their way to shared memory: those of positions 2 * lane() and the next. They are decoded when they
// are stored, so that nothing waits for them before.
struct Scales {
    Few<S, 2> key;
    Few<S, 2> value;
};

__device__ __forceinline__ void load_scales(
    const CacheLayer& cache, const u32* block_table, u32 kv_head, Visible visible, u32 span, Scales& scales
) {
    // Both lie in one page; where the row sees only one of them the other is hidden when they are stored.
    const u32 position = span * SPAN + 2 * lane();
    if (!SCALED || position + 1 < visible.first || position >= visible.end) return;
    const S* key = cache.scales + key_vector(cache, block_table, kv_head, position);
    scales.key = load_few<S, 2>(key);
    scales.value = load_few<S, 2>(key + value_offset(cache));
}

// Zeros in place of those that the row does not see.
__device__ __forceinline__ void store_scales(SpanScales& to, const Scales& scales, Visible seen) {
    if (!SCALED) return;
    float key[2], value[2];
    decode(scales.key, key);
    decode(scales.value, value);
#pragma unroll
    for (u32 i = 0; i < 2; ++i) {
        const u32 position = 2 * lane() + i;
        const bool visible = position >= seen.first && position < seen.end;
        to.key[position] = visible ? key[i] : 0.0f;
        to.value[position] = visible ? value[i] : 0.0f;
    }
}

// ------------------------------------------------------------------------------------------------------- a span

// The query heads of a block as rows of steps. Within a step the keys' order is that of compute_scores().
using Query = u32[DIM_STEPS][4];

struct Scores {
    float value[SPAN / 8][4];
};

__device__ __forceinline__ void compute_scores(u32 keys_at, const Query& query, Scores& scores) {
#pragma unroll
    for (u32 n = 0; n < SPAN / 8; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) scores.value[n][i] = 0.0f;
    }
#pragma unroll
    for (int step = 0; step < DIM_STEPS; ++step) {
        if constexpr (sizeof(C) == 2) {
            // Two tiles of eight positions, of each both packs of the step.
            u32 at = pack_offset(lane() / 16 * 8 + lane() % 8, 2 * step + lane() / 8 % 2);
#pragma unroll
            for (u32 n = 0; n < SPAN / 8; n += 2) {
                u32 keys[4];
                load_matrices(keys, keys_at + at + n * 8 * ROW_BYTES);
                multiply<A>(scores.value[n], query[step], keys[0], keys[1]);
                multiply<A>(scores.value[n + 1], query[step], keys[2], keys[3]);
            }
        } else {
            // Four tiles of eight positions, of each the pack of the step: four neighbouring codes a lane.
            u32 at = pack_offset(lane(), step);
#pragma unroll
            for (u32 n = 0; n < SPAN / 8; n += 4) {
                u32 keys[4];
                load_matrices(keys, keys_at + at + n * 8 * ROW_BYTES);
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    u32 first = widen(keys[i] & 0xffff, A{}), second = widen(keys[i] >> 16, A{});
                    multiply<A>(scores.value[n + i], query[step], first, second);
                }
            }
        }
    }
}

// Weights as the columns of steps over positions, eight heads each: high and low parts.
struct Weights {
    u32 high[SPAN_STEPS][HALVES][2];
    u32 low[SPAN_STEPS][HALVES][2];
    // What the outputs of head lane() / 4 are multiplied by.
    float of_outputs[HALVES];
};

// Minus infinity in place of the scores of positions that the row does not see: few spans have any.
__device__ __forceinline__ void hide_unseen(Visible seen, int half, Scores& scores) {
#pragma unroll
    for (u32 n = 0; n < SPAN / 8; ++n) {
#pragma unroll
        for (u32 i = 0; i < 2; ++i) {
            const u32 position = n * 8 + 2 * (lane() % 4) + i;
            float& score = scores.value[n][2 * half + i];
            score = position >= seen.first && position < seen.end ? score : -infinity();
        }
    }
}

__device__ __forceinline__ void compute_weights(
    const SpanScales& scales, Visible seen, float scale, Scores& scores, SpanSoftmax& softmax, Weights& weights
) {
    float base = base_2(scale);
    u32 column = 2 * (lane() % 4);
    bool whole = seen.first == 0 && seen.end == SPAN;
#pragma unroll
    for (int half = 0; half < HALVES; ++half) {
        float largest = -infinity(), sum = 0.0f, heaviest = 0.0f;
#pragma unroll
        for (u32 n = 0; n < SPAN / 8; ++n) {
#pragma unroll
            for (u32 i = 0; i < 2; ++i) {
                u32 position = n * 8 + column + i;
                float& score = scores.value[n][2 * half + i];
                if (SCALED) score = score * scales.key[position];
            }
        }
        if (!whole) hide_unseen(seen, half, scores);
#pragma unroll
        for (u32 n = 0; n < SPAN / 8; ++n) {
#pragma unroll
            for (u32 i = 0; i < 2; ++i) largest = larger(largest, scores.value[n][2 * half + i]);
        }
        largest = row_largest(largest) * base;
        float shift = finite_or_zero(largest);
#pragma unroll
        for (u32 n = 0; n < SPAN / 8; ++n) {
#pragma unroll
            for (u32 i = 0; i < 2; ++i) {
                float& weight = scores.value[n][2 * half + i];
                weight = weight_of(weight, base, shift);
                sum = sum + weight;
                if (SCALED) weight = weight * scales.value[n * 8 + column + i];
                if (NORMALISED) heaviest = larger(heaviest, weight);
            }
        }
        sum = row_sum(sum);
        u32 head = lane() / 4 + 8 * half;
        if (lane() % 4 == 0 && head < HEADS) softmax[head] = Softmax{largest, sum};
        Normal normal = NORMALISED ? normal_of(row_largest(heaviest)) : Normal{1.0f, 1.0f};
        weights.of_outputs[half] = normal.of_outputs;
#pragma unroll
        for (u32 n = 0; n < SPAN / 8; ++n) {
            float pair[2] = {scores.value[n][2 * half], scores.value[n][2 * half + 1]};
            if (NORMALISED) {
                pair[0] = pair[0] * normal.of_weights;
                pair[1] = pair[1] * normal.of_weights;
            }
            split(pair[0], pair[1], weights.high[n / 2][half][n % 2], weights.low[n / 2][half][n % 2]);
        }
    }
}

struct Outputs {
    float value[HALVES][4];
};

// A step: the values of 16 positions as rows of 16 dimensions, the heads as columns.
__device__ __forceinline__ void multiply_values(
    Outputs& out, const Weights& weights, int step, const u32 (&values)[4]
) {
#pragma unroll
    for (int half = 0; half < HALVES; ++half) {
        multiply<A>(out.value[half], values, weights.high[step][half][0], weights.high[step][half][1]);
    }
#pragma unroll
    for (int half = 0; half < HALVES; ++half) {
        multiply<A>(out.value[half], values, weights.low[step][half][0], weights.low[step][half][1]);
    }
}

// Stores the outputs of a tile of dimensions, whose order is that of compute_outputs().
__device__ __forceinline__ void store_outputs(
    SpanOutputs& outputs, int tile, const Outputs& out, const Weights& weights
) {
#pragma unroll
    for (int half = 0; half < HALVES; ++half) {
#pragma unroll
        for (u32 i = 0; i < 2; ++i) {
            u32 head = 2 * (lane() % 4) + i + 8 * half;
            float x = out.value[half][i], y = out.value[half][2 + i];
            if (NORMALISED) {
                float by = __shfl_sync(FULL_WARP, weights.of_outputs[half], 4 * (2 * (lane() % 4) + i));
                x = x * by;
                y = y * by;
            }
            if (head >= HEADS) continue;
            float* to = &outputs[head][16 * tile];
            if constexpr (sizeof(C) == 2) {
                to[lane() / 4] = x;
                to[lane() / 4 + 8] = y;
            } else {
                *reinterpret_cast<float2*>(to + 2 * (lane() / 4)) = float2{x, y};
            }
        }
    }
}

__device__ __forceinline__ void compute_outputs(u32 values_at, const Weights& weights, SpanOutputs& outputs) {
#pragma unroll
    for (int first = 0; first < DIM_STEPS; first += AT_ONCE) {
        Outputs out[AT_ONCE];
        u32 at[AT_ONCE];
#pragma unroll
        for (int tile = 0; tile < AT_ONCE; ++tile) {
#pragma unroll
            for (int i = 0; i < 4 * HALVES; ++i) out[tile].value[i / 4][i % 4] = 0.0f;
            at[tile] = sizeof(C) == 2 ? pack_offset(lane() % 8 + lane() / 16 * 8, 2 * (first + tile) + lane() / 8 % 2)
                                      : pack_offset(lane(), first + tile);
        }
        if constexpr (sizeof(C) == 2) {
            // Matrices: both packs of the tile at the first eight positions, then at the second.
#pragma unroll
            for (int step = 0; step < SPAN_STEPS; ++step) {
#pragma unroll
                for (int tile = 0; tile < AT_ONCE; ++tile) {
                    u32 values[4];
                    load_transposed(values, values_at + at[tile] + step * 16 * ROW_BYTES);
                    multiply_values(out[tile], weights, step, values);
                }
            }
        } else {
            // Pairs of codes are transposed together: of a tile the even dimensions are the first eight rows.
#pragma unroll
            for (int step = 0; step < SPAN_STEPS; step += 2) {
#pragma unroll
                for (int tile = 0; tile < AT_ONCE; ++tile) {
                    u32 codes[4];
                    load_transposed(codes, values_at + at[tile] + step * 16 * ROW_BYTES);
#pragma unroll
                    for (int i = 0; i < 2; ++i) {
                        u32 low = __byte_perm(codes[2 * i], 0, 0x3120), high = __byte_perm(codes[2 * i + 1], 0, 0x3120);
                        u32 values[4] = {
                            widen(low & 0xffff, A{}), widen(low >> 16, A{}),
                            widen(high & 0xffff, A{}), widen(high >> 16, A{})
                        };
                        multiply_values(out[tile], weights, step + i, values);
                    }
                }
            }
        }
#pragma unroll
        for (int tile = 0; tile < AT_ONCE; ++tile) store_outputs(outputs, first + tile, out[tile], weights);
    }
}


// ------------------------------------------------------------------------------------------------------- merging

// Two dimensions of a head, and its softmax.
struct Merged {
    Softmax softmax;
    float2 out;
};

// How the section's spans are joined to it one after the other, of which the row sees those from `first` up to, not including,
// `end`. The warps that have an item do it together: an item is span item % SECTION of a head.
__device__ __forceinline__ void join_spans(Section& section, u32 first, u32 end, u32 item) {
    u32 head = item / SECTION, i = item % SECTION;
    Softmax part = nothing_seen();
    if (head < HEADS && i >= first && i < end) part = section.softmax[i][head];
    float before = -infinity(), now = -infinity(), last = -infinity();
#pragma unroll
    for (u32 span = 0; span < SECTION; ++span) {
        const float next = reference(last, __shfl_sync(FULL_WARP, part.largest, span, SECTION));
        if (i == span) before = last;
        if (i == span) now = next;
        last = next;
    }
    const Factors by{factor_before(before, now), factor_of_span(part.largest, now)};
    if (head < HEADS) section.joined[i][head] = Joined{by, part.sum, last};
}

__device__ __forceinline__ Merged merge_spans(const Section& section, u32 first, u32 end, u32 head, u32 dim) {
    Joined joined[SECTION];
    float2 out[SECTION];
#pragma unroll
    for (u32 i = 0; i < SECTION; ++i) {
        joined[i] = section.joined[i][head];
        out[i] = *reinterpret_cast<const float2*>(&section.outputs[i][head][dim]);
    }
    Merged all{nothing_seen(), float2{0.0f, 0.0f}};
#pragma unroll
    for (u32 i = 0; i < SECTION; ++i) {
        if (i < first || i >= end) continue;
        Factors by = joined[i].by;
        all.softmax.sum = mul_add(joined[i].sum, by.part, all.softmax.sum * by.before);
        all.out = float2{merge_output(all.out.x, out[i].x, by), merge_output(all.out.y, out[i].y, by)};
    }
    all.softmax.largest = joined[SECTION - 1].largest;
    return all;
}
