// Tiles of attention's query rows on the tensor cores: where what they stage lies, and what becomes of scores and outputs in
// registers.
//
// The rows of a tile are consecutive tokens of one sequence, each with all query heads of the group: row r is token
// r / group, head r % group. The first 2 * ROWS threads of a block compute them, 16 rows a warp. A lane has of rows g and
// g + 8 the columns 2 t and 2 t + 1 of every 8, of scores, weights and outputs alike (g = lane / 4, t = lane % 4), so that
// weights stay where scores were.
//
// Queries, keys and values lie in panels of 64 values, 128 bytes a vector, whose 16-byte chunks change places by the
// vector's low three bits, so that neither copies nor matrix loads meet in a bank. To wgmma this is its widest swizzle.
//
// Aliases: those of attention_mma.cuh; ROWS of a tile; SHARED, the bytes of shared memory.

// Hopper's four warps of a warpgroup multiply together, and take the right operand from shared memory.
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
#define WARPGROUPS 1
#else
#define WARPGROUPS 0
#endif

constexpr int PANEL = 64;
constexpr int PANELS = (DIM + PANEL - 1) / PANEL;
// Chunks of 16 bytes: of a row of a panel; of a staged vector, zeros beyond DIM included; of a staged span.
constexpr int CHUNK = 8;
constexpr int PANEL_CHUNKS = PANEL / CHUNK;
constexpr int CHUNKS = 2 * DIM_STEPS;
constexpr int STAGE_CHUNKS = PANELS * int(SPAN) * PANEL_CHUNKS;
// Groups of eight columns, of which a lane has two.
constexpr int COLUMNS = 8;

constexpr bool CONVERTED = sizeof(C) == 1;

static_assert(SPAN == PANEL, "what the layout relies on");
static_assert(ROWS % 64 == 0, "whole warpgroups");

// Sixteen rows of the left operand of a step, and of results 64 columns.
struct Left {
    u32 part[4];
};
struct Columns {
    float part[COLUMNS][4];
};

// A span's weights as left operands: high parts, low parts.
struct Weights {
    Left high[SPAN_STEPS];
    Left low[SPAN_STEPS];
};

__device__ __forceinline__ void clear(Columns& columns) {
#pragma unroll
    for (int j = 0; j < COLUMNS; ++j) {
#pragma unroll
        for (int i = 0; i < 4; ++i) columns.part[j][i] = 0.0f;
    }
}

// What sections before the current one left of the rows. It waits in shared memory: it is needed once in SECTION spans.
struct Before {
    // [panel][column][thread]: the four numbers of a Columns::part.
    float4 outputs[PANELS][COLUMNS][2 * ROWS];
    Softmax softmax[ROWS];
};

// -------------------------------------------------------------------------------------------------------- staging

// Where a chunk of a vector lies among COUNT staged vectors.
template <u32 COUNT = SPAN>
__device__ __forceinline__ u32 place(u32 vector, u32 chunk) {
    return (chunk / PANEL_CHUNKS * COUNT + vector) * PANEL_CHUNKS + (chunk % PANEL_CHUNKS ^ vector % 8);
}

// In place of a page or of the number of a key's vector: no row of the tile sees the position, and zeros are staged.
constexpr u32 UNSEEN = 0xffffffff;

// Copies 16 bytes, or zeros.
__device__ __forceinline__ void copy_async_or_zero(uint4* to, const void* from, bool copied) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                 ::"r"(shared_address(to)), "l"(from), "r"(copied ? 16 : 0) : "memory");
}

__device__ __forceinline__ bool not_finite(u32 word) {
    // Two numbers a word; the exponent is what infinity has.
    const u32 exponent = from_f32<A>(infinity()).bits;
    return (word & exponent) == exponent || (word >> 16 & exponent) == exponent;
}

__device__ __forceinline__ bool not_finite(const uint4& chunk) {
    return not_finite(chunk.x) || not_finite(chunk.y) || not_finite(chunk.z) || not_finite(chunk.w);
}

// ----------------------------------------------------------------------------------------------------------- rows

// What is computed together: a key head, and tokens, of which the first one's row in the batch and its position are given.
struct Work {
    u32 kv_head;
    u32 first_row;
    u32 position;
    u32 tokens;
};

__device__ __forceinline__ Visible seen_by(const AttentionArgs& args, const Work& work, u32 token) {
    return visible_to(work.position + token, args.window);
}
__device__ __forceinline__ bool sees_of_span(const AttentionArgs& args, const Work& work, u32 token, u32 span) {
    Visible seen = within_span(seen_by(args, work, token), span);
    return seen.first < seen.end;
}
// What any row sees, and what every row sees.
__device__ __forceinline__ Visible seen_by_any(const AttentionArgs& args, const Work& work) {
    return Visible{seen_by(args, work, 0).first, work.position + work.tokens};
}
__device__ __forceinline__ Visible seen_by_every(const AttentionArgs& args, const Work& work) {
    return Visible{seen_by(args, work, work.tokens - 1).first, work.position + 1};
}

// The two rows of a lane: their tokens, and what they have seen of the current section. Rows that the tile does not
// have compute like others, as token 0, and are not stored.
struct Rows {
    u32 token[2];
    Softmax section[2];
};

__device__ __forceinline__ u32 lane_row(int half) { return threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4 + 8 * half; }

__device__ __forceinline__ bool exists(const AttentionArgs& args, const Work& work, int half) {
    return lane_row(half) < work.tokens * args.group;
}

// Values of a row's head within a row of queries or outputs.
__device__ __forceinline__ u32 head_offset(
    const AttentionArgs& args, const Work& work, const Rows& rows, int half
) {
    return (work.kv_head * args.group + lane_row(half) - rows.token[half] * args.group) * DIM;
}

// What a lane has of one row: `half` is 0 for row g, 1 for row g + 8; column i is position i / 2 * 8 + 2 t + i % 2.
__device__ __forceinline__ float& at(Columns& c, int half, int i) { return c.part[i / 2][2 * half + i % 2]; }

// Gives what the rows do not see of a span another value.
__device__ __forceinline__ void hide(
    Columns& c, const AttentionArgs& args, const Work& work, u32 span, const Rows& rows, float value
) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        Visible seen = within_span(seen_by(args, work, rows.token[half]), span);
        u32 first = threadIdx.x % 4 * 2 - seen.first, count = seen.end - seen.first;
#pragma unroll
        for (int i = 0; i < 2 * COLUMNS; ++i) {
            at(c, half, i) = first + (i / 2 * 8 + i % 2) < count ? at(c, half, i) : value;
        }
    }
}

// One number for each of a lane's rows.
struct Pair {
    float row[2];
};

// The largest number of each row.
__device__ __forceinline__ Pair largest_of(Columns& c) {
    // Four chains a row, so that they take turns.
    float most[2][4];
#pragma unroll
    for (int i = 0; i < 4 * COLUMNS; ++i) {
        int half = i % 2, chain = i / 2 % 4;
        float x = at(c, half, i / 2);
        most[half][chain] = i / 2 < 4 ? x : larger(most[half][chain], x);
    }
    Pair largest;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        float one = larger(most[half][0], most[half][1]), other = larger(most[half][2], most[half][3]);
        largest.row[half] = row_largest(larger(one, other));
    }
    return largest;
}

// Scores become exponents of two: the largest of each row.
__device__ __forceinline__ Pair exponents(Columns& c, float base) {
    Pair largest = largest_of(c);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        float& most = largest.row[half];
        most = most * base;
        float shift = finite_or_zero(most);
#pragma unroll
        for (int i = 0; i < 2 * COLUMNS; ++i) at(c, half, i) = mul_add(at(c, half, i), base, -shift);
    }
    return largest;
}

// Exponents become weights, of which this lane's are added up for each row.
__device__ __forceinline__ Pair weigh(Columns& c) {
    Pair sum;
#pragma unroll
    for (int i = 0; i < 4 * COLUMNS; ++i) {
        int half = i % 2;
        float& x = at(c, half, i / 2);
        x = power_of_two(x);
        // Zero and the first are the first: it is not negative.
        sum.row[half] = i < 2 ? x : sum.row[half] + x;
    }
    return sum;
}

// Multiplies all columns by scales of their positions.
__device__ __forceinline__ void multiply_by(Columns& c, const float* scale) {
#pragma unroll
    for (int i = 0; i < 2 * COLUMNS; ++i) {
        float by = scale[i / 2 * 8 + threadIdx.x % 4 * 2 + i % 2];
        at(c, 0, i) = at(c, 0, i) * by;
        at(c, 1, i) = at(c, 1, i) * by;
    }
}

// Multiplies the weights of each row by a power of two; returns what undoes it.
__device__ __forceinline__ Pair normalise(Columns& c) {
    Pair largest = largest_of(c), undo;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        Normal normal = normal_of(largest.row[half]);
#pragma unroll
        for (int i = 0; i < 2 * COLUMNS; ++i) at(c, half, i) = at(c, half, i) * normal.of_weights;
        undo.row[half] = normal.of_outputs;
    }
    return undo;
}

__device__ __forceinline__ void multiply_rows(Columns& c, float first, float second) {
#pragma unroll
    for (int i = 0; i < 2 * COLUMNS; ++i) {
        at(c, 0, i) = at(c, 0, i) * first;
        at(c, 1, i) = at(c, 1, i) * second;
    }
}

__device__ __forceinline__ void split_weights(const Columns& c, Weights& weights) {
#pragma unroll
    for (int j = 0; j < COLUMNS; ++j) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            int part = j % 2 * 2 + half;
            split(
                c.part[j][2 * half], c.part[j][2 * half + 1],
                weights.high[j / 2].part[part], weights.low[j / 2].part[part]
            );
        }
    }
}

// A span's scores become exponents of two: the largest of each row. An edge is a span that some rows do not see all of.
__device__ __forceinline__ Pair exponents_of_span(
    const AttentionArgs& args, const Work& work, u32 span, bool edge, const Rows& rows, const float* key_scale,
    Columns& c
) {
    if (SCALED) multiply_by(c, key_scale);
    if (edge) hide(c, args, work, span, rows, -infinity());
    return exponents(c, base_2(args.scale));
}

// Exponents become weights, times the values' scales and, where they are normalised, a power of two that `undo` undoes: the sums
// of the weights alone.
__device__ __forceinline__ Pair weights_of_span(
    const AttentionArgs& args, const Work& work, u32 span, bool edge, const Rows& rows, const float* value_scale,
    Columns& c, Pair& undo
) {
    Pair sum = weigh(c);
    if (SCALED) {
        multiply_by(c, value_scale);
        if (edge) hide(c, args, work, span, rows, 0.0f);
        if (NORMALISED) undo = normalise(c);
    }
    return sum;
}

// By this factor, nothing is added to outputs: their zeros keep their signs.
constexpr float NOTHING_ADDED = -0.0f;

// Joins the span's softmax to the section's where a row sees some of the span; returns the factors for its outputs. Those of
// the section are multiplied where it is relative to another exponent from now on.
__device__ __forceinline__ void join_span(
    const AttentionArgs& args, const Work& work, u32 span, bool edge, const Pair& largest, const Pair& sum, Rows& rows,
    Columns (&out)[PANELS], Pair& by
) {
    Pair now;
    bool any_moves = false;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const float before = rows.section[half].largest;
        now.row[half] = reference(before, largest.row[half]);
        by.row[half] = factor_of_span(largest.row[half], now.row[half]);
        any_moves = any_moves || moves(before, now.row[half]);
    }
    if (__any_sync(FULL_WARP, any_moves)) {
        Pair of_section;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            Softmax& section = rows.section[half];
            of_section.row[half] = factor_before(section.largest, now.row[half]);
            section.sum = section.sum * of_section.row[half];
        }
#pragma unroll
        for (int panel = 0; panel < PANELS; ++panel) multiply_rows(out[panel], of_section.row[0], of_section.row[1]);
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const float all = mul_add(row_sum(sum.row[half]), by.row[half], rows.section[half].sum);
        rows.section[half] = Softmax{now.row[half], all};
    }
    if (!edge) return;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        // Nothing was added to the softmax.
        if (!sees_of_span(args, work, rows.token[half], span)) by.row[half] = NOTHING_ADDED;
    }
}

// Adds a span's outputs to the section's.
__device__ __forceinline__ void add_outputs(Columns& all, const Columns& part, const Pair& by) {
#pragma unroll
    for (int i = 0; i < 4 * COLUMNS; ++i) {
        float& to = all.part[i / 4][i % 4];
        to = mul_add(part.part[i / 4][i % 4], by.row[i % 4 / 2], to);
    }
}

// Starts with nothing seen.
__device__ __forceinline__ void start_rows(const AttentionArgs& args, const Work& work, Before& before, Rows& rows) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        rows.token[half] = exists(args, work, half) ? lane_row(half) / args.group : 0;
        rows.section[half] = before.softmax[lane_row(half)] = nothing_seen();
    }
#pragma unroll
    for (int i = 0; i < PANELS * COLUMNS; ++i) {
        before.outputs[i / COLUMNS][i % COLUMNS][threadIdx.x] = float4{0.0f, 0.0f, 0.0f, 0.0f};
    }
    __syncwarp();
}

// Joins a section to those before it, and starts the next.
__device__ __forceinline__ void close_section(
    const AttentionArgs& args, const Work& work, u32 section, Before& before, Rows& rows, Columns (&out)[PANELS]
) {
    Softmax all[2] = {before.softmax[lane_row(0)], before.softmax[lane_row(1)]};
    // The four lanes of a row have read what all of them write.
    __syncwarp();
    Factors by[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        constexpr u32 POSITIONS = SECTION * SPAN;
        Visible visible = seen_by(args, work, rows.token[half]);
        bool taken = visible.first < (section + 1) * POSITIONS && visible.end > section * POSITIONS;
        by[half] = join(all[half], rows.section[half]);
        if (taken) {
            before.softmax[lane_row(half)] = all[half];
        } else {
            by[half] = Factors{1.0f, NOTHING_ADDED};
        }
        rows.section[half] = nothing_seen();
    }
#pragma unroll
    for (int i = 0; i < PANELS * COLUMNS; ++i) {
        const float (&part)[4] = out[i / COLUMNS].part[i % COLUMNS];
        float4& to = before.outputs[i / COLUMNS][i % COLUMNS][threadIdx.x];
        float4 sum = to;
        sum.x = merge_output(sum.x, part[0], by[0]);
        sum.y = merge_output(sum.y, part[1], by[0]);
        sum.z = merge_output(sum.z, part[2], by[1]);
        sum.w = merge_output(sum.w, part[3], by[1]);
        to = sum;
    }
    // All four have written it before any reads it again.
    __syncwarp();
#pragma unroll
    for (int panel = 0; panel < PANELS; ++panel) clear(out[panel]);
}

// A number that others are divided by. Where all of them are moderate, quotients have the bits of divide() without its branch.
struct Divisor {
    float value;
    float reciprocal;
    bool moderate;
};

// From 2^-60 up to 2^60: nothing on the way to a quotient is too large or too small for its last bit.
__device__ __forceinline__ bool is_moderate(float x) { return bits_of(x) * 2 - (67u << 24) < 120u << 24; }

__device__ __forceinline__ Divisor divisor(float x) {
    float guess;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(guess) : "f"(x));
    return Divisor{x, mul_add(guess, mul_add(-x, guess, 1.0f), guess), is_moderate(x)};
}

// Notes where the number is not moderate.
__device__ __forceinline__ float quotient(float x, const Divisor& by, bool& moderate) {
    moderate = moderate && is_moderate(x);
    float guess = x * by.reciprocal;
    return mul_add(by.reciprocal, mul_add(-by.value, guess, x), guess);
}

__device__ __forceinline__ void store_rows(
    const AttentionArgs& args, const Work& work, const Before& before, const Rows& rows
) {
    constexpr int PAIRS = DIM / 8;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        if (!exists(args, work, half)) continue;
        A* to = args.out + u64(work.first_row + rows.token[half]) * args.out_stride;
        to += head_offset(args, work, rows, half) + threadIdx.x % 4 * 2;
        const Divisor sum = divisor(before.softmax[lane_row(half)].sum);
        float quotients[PAIRS][2];
        bool moderate = sum.moderate;
#pragma unroll
        for (int i = 0; i < PAIRS; ++i) {
            float4 all = before.outputs[i / COLUMNS][i % COLUMNS][threadIdx.x];
            quotients[i][0] = quotient(half == 0 ? all.x : all.z, sum, moderate);
            quotients[i][1] = quotient(half == 0 ? all.y : all.w, sum, moderate);
        }
        if (moderate) {
#pragma unroll
            for (int i = 0; i < PAIRS; ++i) store_few(to + i * 8, encode<A>(quotients[i]));
            continue;
        }
#pragma unroll 1
        for (int i = 0; i < PAIRS; ++i) {
            float4 all = before.outputs[i / COLUMNS][i % COLUMNS][threadIdx.x];
            float first = half == 0 ? all.x : all.z, second = half == 0 ? all.y : all.w;
            float two[2] = {divide(first, sum.value), divide(second, sum.value)};
            store_few(to + i * 8, encode<A>(two));
        }
    }
}
