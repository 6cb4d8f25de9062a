// What attention_decode_mma.cu does with one span: a warp has its keys and values in shared memory, multiplies them
// with the query heads of one key head, and leaves outputs and softmax there.
//
// Aliases: those of attention_mma.cuh, GROUP (query heads of a key head), WARPS (a divisor of SECTION) and SHARED
// (bytes of shared memory).

constexpr int THREADS = 32 * WARPS;
// Query heads of a block, the rows of its matrix steps. With at most 8 the second half of the rows is not used. Wide heads
// are as many as their outputs fit shared memory.
constexpr int HEADS = minimum(GROUP, DIM > 128 ? 8 : 16);
constexpr int TILES = (GROUP + HEADS - 1) / HEADS;
constexpr int HALVES = HEADS > 8 ? 2 : 1;

// 16-byte packs of a vector in the steps of a chain, and from one vector to the next in shared memory: an odd number,
// so that eight neighbouring vectors are in different banks.
constexpr int PER_PACK = Pack<C>::VALUES;
constexpr int PACKS = DIM_STEPS * 16 / PER_PACK;
constexpr int ROW_PACKS = PACKS | 1;
constexpr int ROW_BYTES = ROW_PACKS * 16;
// Values from one vector to the next in memory.
constexpr int STRIDE = (DIM + PER_PACK - 1) / PER_PACK * PER_PACK;
// Positions that surely lie in one page.
constexpr u32 RUN = 16;

// Tiles of 16 dimensions that outputs are computed in at a time.
constexpr int AT_ONCE = DIM_STEPS % 4 == 0 ? 4 : DIM_STEPS % 2 == 0 ? 2 : 1;
// Floats from one head's outputs to the next: lanes that store together do so in different banks.
constexpr int OUT_STRIDE = DIM_STEPS * 16 + 4;
// Merging: a thread has two neighbouring dimensions of a head.
constexpr u32 PAIRS = DIM / 2;

// What a warp has of a span.
struct Staged {
    uint4 keys[SPAN][ROW_PACKS];
    uint4 values[SPAN][ROW_PACKS];
    float key_scale[SCALED ? SPAN : 4];
    float value_scale[SCALED ? SPAN : 4];
};

// How a span is joined to the section's spans before it, and the largest exponent then.
struct __align__(16) Joined {
    Factors by;
    float sum;
    float largest;
};

struct Shared {
    Staged staged[WARPS];
    float outputs[SECTION][HEADS][OUT_STRIDE];
    Softmax softmax[SECTION][HEADS];
    Joined joined[SECTION][HEADS];
    // What sections have been merged so far, where the block has all of them.
    float total[HEADS][OUT_STRIDE];
    Softmax total_softmax[HEADS][PAIRS];
};

static_assert(sizeof(Shared) == SHARED, "what the launch gives");

__device__ __forceinline__ u32 lane() { return threadIdx.x % 32; }
// The same in all lanes, in a way that the compiler sees.
__device__ __forceinline__ u32 warp() { return __shfl_sync(FULL_WARP, threadIdx.x / 32, 0); }

// What a block works on.
struct Row {
    u32 number;
    const u32* block_table;
    Visible visible;
    // Positions before this one were written by earlier steps.
    u32 settled;
    u32 kv_head;
    u32 first_head;
    u32 heads;
    u32 first_section;
    u32 sections;
};

// --------------------------------------------------------------------------------------------------------- copying

// The key vectors at which the runs of a span start: lane i has that of run i % 4.
__device__ __forceinline__ u32 find_runs(const CacheLayer& cache, const Row& row, u32 span) {
    u32 position = span * SPAN + lane() % (SPAN / RUN) * RUN;
    return position < row.visible.end ? key_vector(cache, row.block_table, row.kv_head, position) : 0;
}

// Starts copying 16 bytes, of which those from `bytes` on are zeros.
__device__ __forceinline__ void copy_async_some(void* shared, const void* global, u32 bytes) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)), "l"(global), "r"(bytes)
                 : "memory");
}

// Starts copying the vectors of a span, which is a group of copies also if there is none; zeros take the place of
// positions that the row does not see.
__device__ __forceinline__ void start_copy(
    const CacheLayer& cache, const Row& row, u32 span, u32 runs, u32 offset, uint4 (&to)[SPAN][ROW_PACKS]
) {
    if (span * SPAN < row.visible.end) {
        Visible seen = within_span(row.visible, span);
#pragma unroll 1
        for (u32 run = 0; run < SPAN / RUN; ++run) {
            u32 vector = __shfl_sync(FULL_WARP, runs, run) + offset;
            const C* from = cache.values + u64(vector) * STRIDE;
#pragma unroll
            for (u32 start = 0; start < RUN * PACKS; start += 32) {
                u32 index = start + lane(), position = run * RUN + index / PACKS, pack = index % PACKS;
                bool visible = position >= seen.first && position < seen.end;
                u32 left = DIM > pack * PER_PACK ? (DIM - pack * PER_PACK) * u32(sizeof(C)) : 0;
                const C* pack_from = from + index / PACKS * STRIDE + pack * PER_PACK;
                if (RUN * PACKS % 32 == 0 || index < RUN * PACKS) {
                    copy_async_some(&to[position][pack], pack_from, visible ? minimum(left, 16u) : 0);
                }
            }
        }
    }
    copy_async_commit();
}

// The scales of a span on their way to shared memory: those of positions lane() and lane() + 32.
struct Scales {
    float key[2];
    float value[2];
};

__device__ __forceinline__ void load_scales(const CacheLayer& cache, const Row& row, u32 span, Scales& scales) {
#pragma unroll
    for (u32 i = 0; i < 2; ++i) {
        u32 position = span * SPAN + lane() + 32 * i;
        scales.key[i] = scales.value[i] = 0.0f;
        if (SCALED && position >= row.visible.first && position < row.visible.end) {
            const S* key = cache.scales + key_vector(cache, row.block_table, row.kv_head, position);
            scales.key[i] = to_f32(key[0]);
            scales.value[i] = to_f32(key[value_offset(cache)]);
        }
    }
}

__device__ __forceinline__ void store_scales(Staged& staged, const Scales& scales) {
#pragma unroll
    for (u32 i = 0; SCALED && i < 2; ++i) {
        staged.key_scale[lane() + 32 * i] = scales.key[i];
        staged.value_scale[lane() + 32 * i] = scales.value[i];
    }
}

// ------------------------------------------------------------------------------------------------------- a span

using Query = u32[DIM_STEPS][4];

// The query heads of the block as rows of steps. Within a step the keys' order is that of load_keys().
__device__ __forceinline__ void load_query(const AttentionArgs& args, const Row& row, Query& query) {
    constexpr int NEAR = sizeof(C) == 2 ? 2 : 4, FAR = sizeof(C) == 2 ? 8 : 2;
    const A* from = args.query + u64(row.number) * args.query_stride + row.first_head * DIM;
#pragma unroll
    for (int step = 0; step < DIM_STEPS; ++step) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            u32 head = lane() / 4 + i % 2 * 8, dim = 16 * step + NEAR * (lane() % 4) + i / 2 * FAR;
            bool inside = i % 2 < HALVES && head < row.heads && dim < DIM;
            query[step][i] = inside ? load_few<A, 2>(from + head * DIM + dim).raw.bits : 0;
        }
    }
}

struct Scores {
    float value[SPAN / 8][4];
};

__device__ __forceinline__ void compute_scores(const Staged& staged, const Query& query, Scores& scores) {
#pragma unroll
    for (u32 n = 0; n < SPAN / 8; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) scores.value[n][i] = 0.0f;
    }
    u32 base = shared_address(staged.keys);
#pragma unroll
    for (int step = 0; step < DIM_STEPS; ++step) {
        if constexpr (sizeof(C) == 2) {
            // Two tiles of eight positions, of each both packs of the step.
            u32 address = base + (lane() / 16 * 8 + lane() % 8) * ROW_BYTES + (2 * step + lane() / 8 % 2) * 16;
#pragma unroll
            for (u32 n = 0; n < SPAN / 8; n += 2) {
                u32 keys[4];
                load_matrices(keys, address + n * 8 * ROW_BYTES);
                multiply<A>(scores.value[n], query[step], keys[0], keys[1]);
                multiply<A>(scores.value[n + 1], query[step], keys[2], keys[3]);
            }
        } else {
            // Four tiles of eight positions, of each the pack of the step: four neighbouring codes a lane.
            u32 address = base + lane() * ROW_BYTES + step * 16;
#pragma unroll
            for (u32 n = 0; n < SPAN / 8; n += 4) {
                u32 keys[4];
                load_matrices(keys, address + n * 8 * ROW_BYTES);
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

__device__ __forceinline__ void compute_weights(
    Shared& shared, const Staged& staged, Visible seen, u32 slot, float scale, Scores& scores, Weights& weights
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
                if (SCALED) score = score * staged.key_scale[position];
                if (!whole) score = position >= seen.first && position < seen.end ? score : -infinity();
                largest = larger(largest, score);
            }
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
                if (SCALED) {
                    weight = weight * staged.value_scale[n * 8 + column + i];
                    heaviest = larger(heaviest, weight);
                }
            }
        }
        sum = row_sum(sum);
        u32 head = lane() / 4 + 8 * half;
        if (lane() % 4 == 0 && head < HEADS) shared.softmax[slot][head] = Softmax{largest, sum};
        Normal normal = SCALED ? normal_of(row_largest(heaviest)) : Normal{1.0f, 1.0f};
        weights.of_outputs[half] = normal.of_outputs;
#pragma unroll
        for (u32 n = 0; n < SPAN / 8; ++n) {
            float pair[2] = {scores.value[n][2 * half], scores.value[n][2 * half + 1]};
            if (SCALED) {
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
    Shared& shared, u32 slot, int tile, const Outputs& out, const Weights& weights
) {
#pragma unroll
    for (int half = 0; half < HALVES; ++half) {
#pragma unroll
        for (u32 i = 0; i < 2; ++i) {
            u32 head = 2 * (lane() % 4) + i + 8 * half;
            float x = out.value[half][i], y = out.value[half][2 + i];
            if (SCALED) {
                float by = __shfl_sync(FULL_WARP, weights.of_outputs[half], 4 * (2 * (lane() % 4) + i));
                x = x * by;
                y = y * by;
            }
            if (head >= HEADS) continue;
            float* to = &shared.outputs[slot][head][16 * tile];
            if constexpr (sizeof(C) == 2) {
                to[lane() / 4] = x;
                to[lane() / 4 + 8] = y;
            } else {
                *reinterpret_cast<float2*>(to + 2 * (lane() / 4)) = float2{x, y};
            }
        }
    }
}

__device__ __forceinline__ void compute_outputs(
    Shared& shared, const Staged& staged, u32 slot, const Weights& weights
) {
    u32 base = shared_address(staged.values);
#pragma unroll
    for (int first = 0; first < DIM_STEPS; first += AT_ONCE) {
        Outputs out[AT_ONCE];
#pragma unroll
        for (int tile = 0; tile < AT_ONCE; ++tile) {
#pragma unroll
            for (int i = 0; i < 4 * HALVES; ++i) out[tile].value[i / 4][i % 4] = 0.0f;
        }
        if constexpr (sizeof(C) == 2) {
            // Matrices: both packs of the tile at the first eight positions, then at the second.
            u32 address = base + (lane() % 8 + lane() / 16 * 8) * ROW_BYTES + (2 * first + lane() / 8 % 2) * 16;
#pragma unroll
            for (int step = 0; step < SPAN_STEPS; ++step) {
#pragma unroll
                for (int tile = 0; tile < AT_ONCE; ++tile) {
                    u32 values[4];
                    load_transposed(values, address + step * 16 * ROW_BYTES + tile * 32);
                    multiply_values(out[tile], weights, step, values);
                }
            }
        } else {
            // Pairs of codes are transposed together: of a tile the even dimensions are the first eight rows.
            u32 address = base + lane() * ROW_BYTES + first * 16;
#pragma unroll
            for (int step = 0; step < SPAN_STEPS; step += 2) {
#pragma unroll
                for (int tile = 0; tile < AT_ONCE; ++tile) {
                    u32 codes[4];
                    load_transposed(codes, address + step * 16 * ROW_BYTES + tile * 16);
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
        for (int tile = 0; tile < AT_ONCE; ++tile) store_outputs(shared, slot, first + tile, out[tile], weights);
    }
}

