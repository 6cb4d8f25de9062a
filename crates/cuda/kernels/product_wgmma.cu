// Tensor-core products of many activations on Hopper (sm_90a): the copy engine brings tiles of both operands to a ring of
// stages in shared memory, and wgmma multiplies them. Sums are formed in the order of product_mma.cuh to the bit: a step
// of wgmma adds like the mma.sync of the same sixteen columns.
//
// Two warps copy, one each operand, and a third may prepare what the epilogue needs. The other warpgroups, GROUPS of them,
// multiply 64 activations each by all WEIGHT_ROWS weights of the tile. Blocks stay and take one tile after another; what
// becomes of the sums of one tile is computed while the tensor cores are at work on the first two segments of the next.
//
// Blocks of a cluster take the same weights for neighbouring tiles of tokens, and each copies its part of these for all. Where
// each block has one tile they take the same tokens, and share these in the same way.
//
// What becomes of sums stands in product_wgmma_plain.cuh or product_wgmma_qkv.cuh: Args, whose `product` is or begins as
// ProductArgs, EPILOGUE_BYTES of shared memory before its barriers, SPLIT_HEADS with load_units(), init_epilogue(), prepare(),
// LATE_UNITS with LateSums, and Finisher.

// ------------------------------------------------------------------------------------------------------- copiers

__device__ __forceinline__ void load_weights(const Args& args, const Ring& ring, u32 feature, u32 column) {
    barrier_expect(ring.full(), WEIGHT_BYTES);
    // Gates and ups of the same outputs, if the product has these.
    const u32 step = PARTS == 2 ? args.product.features : WEIGHT_BOX;
    if constexpr (SPLIT_HEADS) {
        load_units(args, ring.weights(), feature, column, ring.full());
    } else if constexpr (SHARED_WEIGHTS) {
        const u32 box = cluster_rank();
        load_box_for_all(ring.weights() + box * WEIGHT_BOX_BYTES, args.weights, column, feature + box * step, ring.full());
    } else {
#pragma unroll
        for (u32 box = 0; box < WEIGHT_BOXES; ++box) {
            load_box(ring.weights() + box * WEIGHT_BOX_BYTES, args.weights, column, feature + box * step, ring.full());
        }
    }
}

__device__ __forceinline__ void load_input(const Args& args, const Ring& ring, const OutputTile& tile, u32 column) {
    barrier_expect(ring.full(), tile.groups * GROUP_BYTES);
    if constexpr (SHARED_INPUT) {
        const u32 group = cluster_rank();
        load_box_for_all(ring.input() + group * GROUP_BYTES, args.input, column, tile.token + group * GROUP_TOKENS, ring.full());
        return;
    }
    for (u32 group = 0; group < tile.groups; ++group) {
        load_box(ring.input() + group * GROUP_BYTES, args.input, column, tile.token + group * GROUP_TOKENS, ring.full());
    }
    // In the place of the warps that have no part in the tile.
    if (tile.groups < GROUPS) barrier_arrive(ring.empty(), (GROUPS - tile.groups) * 4 * CLUSTER);
}

// Calls load(ring, tile, column) for each stage of this block's tiles, as soon as there is room.
template <class Load>
__device__ __forceinline__ void copy(const Tiles& tiles, Ring ring, Load load) {
    for (u32 index = blockIdx.x; index < tiles.count(); index += gridDim.x) {
        const OutputTile tile = tiles.at(index);
        for (u32 stage = 0; stage < tiles.stages; ++stage, ring.next()) {
            barrier_wait(ring.empty(), ring.parity ^ 1);
            load(ring, tile, stage * DEPTH);
        }
    }
}

// ----------------------------------------------------------------------------------------------------- consumers

// Starts the steps of one stage.
__device__ __forceinline__ void multiply_stage(const Ring& ring, u32 group, bool add, Sums& sums) {
    const u64 input = matrix_at(ring.input() + group * GROUP_TOKENS * ROW_BYTES), weights = matrix_at(ring.weights());
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < DEPTH / 16; ++step) {
        // Sixteen columns are two packs of 16 bytes.
        Step<W, WEIGHT_ROWS>::run(sums, input + step * 2, weights + step * 2, add || step != 0);
    }
    wgmma_commit();
}

__device__ __forceinline__ void release(u32 empty) {
    if constexpr (CLUSTER > 1) {
        if (threadIdx.x % 32 < CLUSTER) barrier_arrive_in(empty, threadIdx.x % 32);
    } else {
        if (threadIdx.x % 32 == 0) barrier_arrive(empty);
    }
}

// One stage of a segment, and beside it what is due of the tile before.
template <int STAGE>
__device__ __forceinline__ void stage_of_segment(Ring& ring, u32 count, bool finish, bool finish_late, u32& last,
                                                 Finisher& finisher, Sums& sums, const Sums& totals,
                                                 const LateSums& late) {
    if (STAGE < count) {
        barrier_wait(ring.full(), ring.parity);
        multiply_stage(ring, finisher.group, STAGE != 0, sums);
    }
    if (finish) finisher.finish_behind<STAGE>(totals);
    if (finish_late) finisher.finish_late_behind<STAGE>(late);
    if (STAGE < count) {
        if constexpr (STAGE != 0) {
            wgmma_wait<1>();
            release(last);
        }
        last = ring.empty();
        ring.next();
    }
}

// Adds the sums of a segment to those before it. A branch and no choice for each number: beside wgmma instructions take twice
// their time.
__device__ __forceinline__ void add_segment(const Sums& sums, bool first, Sums& totals) {
    if (first) {
#pragma unroll
        for (int i = 0; i < WEIGHT_ROWS / 2; ++i) totals[i] = 0.0f + sums[i];
    } else {
#pragma unroll
        for (int i = 0; i < WEIGHT_ROWS / 2; ++i) totals[i] = totals[i] + sums[i];
    }
}

// Whether a warpgroup finds its next tile, which takes divisions, while the tensor cores are at work on the one before. This
// is more code, and other products have one tile a block up to 2,048 rows.
constexpr bool AHEAD = EPILOGUE == SWIGLU;

__device__ __forceinline__ void consume(const Tiles& tiles, Ring ring, Finisher finisher) {
    Sums sums = {}, totals = {};
    LateSums late = {};
    bool finish = false, finish_late = false;
    OutputTile next = tiles.at(blockIdx.x);
    for (u32 index = blockIdx.x; index < tiles.count(); index += gridDim.x) {
        OutputTile tile = AHEAD ? next : tiles.at(index);
        // By what is known to be the same for a warp, and not by `next`: descriptions of operands stay uniform instructions.
        if (finisher.group >= tiles.groups(index)) break;
        tile.token += finisher.group * GROUP_TOKENS;
        for (u32 first = 0; first < tiles.stages; first += STAGES_OF_SEGMENT) {
            const u32 count = minimum(tiles.stages - first, u32(STAGES_OF_SEGMENT));
            u32 last = 0;
            static_assert(STAGES_OF_SEGMENT == 4, "written out");
            stage_of_segment<0>(ring, count, finish, finish_late, last, finisher, sums, totals, late);
            stage_of_segment<1>(ring, count, finish, finish_late, last, finisher, sums, totals, late);
            stage_of_segment<2>(ring, count, finish, finish_late, last, finisher, sums, totals, late);
            stage_of_segment<3>(ring, count, finish, finish_late, last, finisher, sums, totals, late);
            finish_late = false;
            if (LATE_UNITS > 0 && finish) {
                finisher.set_aside(totals, late);
                // Where a tile is one segment there is none to do the rest behind.
                finish_late = tiles.stages > STAGES_OF_SEGMENT;
                if (!finish_late) finisher.finish_late(late);
            }
            finish = false;
            const u32 after = index + gridDim.x;
            if (AHEAD && first + STAGES_OF_SEGMENT >= tiles.stages && after < tiles.count()) next = tiles.at(after);
            wgmma_wait<0>(sums);
            release(last);
            add_segment(sums, first == 0, totals);
            if (first == 0) finisher.begin(tile);
        }
        finisher.tile = tile;
        finish = true;
    }
    if (finish) finisher.finish(totals);
    finisher.end();
}

// A segment that starts with this stage, and the end of the one before, if there is one.
__device__ __forceinline__ void start_segment(const Tiles& tiles, u32 first, u32 group, Ring& ring, u32& last, Sums& sums,
                                              Sums& before, Sums& totals) {
    const u32 count = minimum(tiles.stages - first, u32(STAGES_OF_SEGMENT));
#pragma unroll
    for (int stage = 0; stage < STAGES_OF_SEGMENT; ++stage) {
        if (stage >= count) continue;
        barrier_wait(ring.full(), ring.parity);
        multiply_stage(ring, group, stage != 0, sums);
        if (stage != 0) {
            wgmma_wait<1>();
            release(last);
        } else if (first != 0) {
            wgmma_wait<1>(before);
            release(last);
            add_segment(before, first == STAGES_OF_SEGMENT, totals);
        }
        last = ring.empty();
        ring.next();
    }
}

// The end of the last segment, which starts with this stage.
__device__ __forceinline__ void end_segment(u32 first, u32 last, Sums& sums, Sums& totals) {
    wgmma_wait<0>(sums);
    release(last);
    add_segment(sums, first == 0, totals);
}

// The one tile of a block: nothing is to be finished beside it, so that there are registers for the sums of two segments.
__device__ __forceinline__ void consume_lone(const Tiles& tiles, Ring ring, Finisher finisher) {
    Sums even = {}, odd = {}, totals = {};
    u32 first = 0, last = 0;
    finisher.tile = tiles.at(blockIdx.x);
    finisher.tile.token += finisher.group * GROUP_TOKENS;
    finisher.begin(finisher.tile);
    while (true) {
        start_segment(tiles, first, finisher.group, ring, last, even, odd, totals);
        if (first + STAGES_OF_SEGMENT >= tiles.stages) {
            end_segment(first, last, even, totals);
            break;
        }
        first += STAGES_OF_SEGMENT;
        start_segment(tiles, first, finisher.group, ring, last, odd, even, totals);
        if (first + STAGES_OF_SEGMENT >= tiles.stages) {
            end_segment(first, last, odd, totals);
            break;
        }
        first += STAGES_OF_SEGMENT;
    }
    finisher.finish(totals);
    finisher.end();
}

__device__ __forceinline__ void multiply(const Args& args) {
    extern __shared__ __align__(1024) u8 shared[];
    const u32 stages = shared_address(shared), epilogue = stages + STAGES * STAGE_BYTES;
    const u32 barriers = epilogue + EPILOGUE_BYTES, epilogue_barriers = barriers + 2 * STAGES * 8;
    const Ring ring(stages, barriers);
    if (threadIdx.x == 0) {
        for (int i = 0; i < STAGES; ++i) {
            barrier_init(barriers + i * 8, 2);
            barrier_init(barriers + (STAGES + i) * 8, CONSUMERS / 32 * CLUSTER);
        }
        init_epilogue(epilogue_barriers);
        fence_copies();
        if constexpr (CLUSTER > 1) fence_barriers();
    }
    cluster_sync();
    const Tiles tiles(args.product);
    // The compiler knows then that it is the same for all of a warp, and describes operands by uniform instructions.
    const u32 warp = __shfl_sync(FULL_WARP, threadIdx.x / 32, 0);
    if (warp >= CONSUMERS / 32) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(COPIER_REGISTERS));
        if (threadIdx.x == CONSUMERS) {
            copy(tiles, ring, [&](const Ring& ring, const OutputTile& tile, u32 column) {
                load_weights(args, ring, tile.feature, column);
            });
        } else if (threadIdx.x == CONSUMERS + 32) {
            wait_for_inputs();
            copy(tiles, ring, [&](const Ring& ring, const OutputTile& tile, u32 column) {
                load_input(args, ring, tile, column);
            });
        } else if (warp == CONSUMERS / 32 + 2) {
            prepare(args, tiles, epilogue, epilogue_barriers);
        }
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(CONSUMER_REGISTERS));
        wait_for_inputs();
        const Finisher finisher(args, epilogue, epilogue_barriers, warp / 4);
        if constexpr (LONE) {
            consume_lone(tiles, ring, finisher);
        } else {
            consume(tiles, ring, finisher);
        }
    }
    // Others of the cluster may not have arrived yet at barriers of this block.
    if constexpr (CLUSTER > 1) cluster_sync();
}

// Either, as CLUSTER says: clusters of one block would start later than blocks do.
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) product_wgmma(const __grid_constant__ Args args) {
    launch_dependents();
    if constexpr (CLUSTER == 1) multiply(args);
}

extern "C" __global__ void __cluster_dims__(2, 1, 1) __launch_bounds__(THREADS, BLOCKS)
    product_wgmma_clusters(const __grid_constant__ Args args) {
    launch_dependents();
    if constexpr (CLUSTER == 2) multiply(args);
}
