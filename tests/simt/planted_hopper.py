"""Planted bugs of attention on sm_90a."""

from .planted_bug import Bug, Kernel

FEW, FEW_ROWS = "delta_prefill_few_rows.cuh", "attention_few_rows.cuh"
KERNEL, LOAD, ROWS, TILE, WIDEN = (
    "delta_prefill_hopper.cuh",
    "attention_hopper_load.cuh",
    "attention_hopper_rows.cuh",
    "attention_hopper_tile.cuh",
    "attention_hopper_widen.cuh",
)

KERNELS = [
    Kernel(
        "delta_prefill_hopper",
        "delta_prefill_hopper",
        none="narrow",
        bugs={
            "barrier": [
                Bug(LOAD, "prim::named_barrier_sync(kFillBarrier, kFillThreads);", "", "race"),
                Bug(KERNEL, "prim::named_barrier_sync(kGroupBarrier + rows.group, kGroupThreads);\n}", "}", "race"),
                Bug(KERNEL, "prim::named_barrier_sync(kConsumersBarrier, Rows::kThreads);", "", "race"),
                Bug(KERNEL, "prim::named_barrier_sync(kConsumersBarrier, Rows::kThreads);", "", "race", nth=1),
                Bug(KERNEL, "if (rows.group == 1) c.give_turn(1);", ""),
            ],
            "syncwarp": [
                Bug(TILE, "__syncwarp();\n  if (int(threadIdx.x)", "if (int(threadIdx.x)", "race"),
            ],
            "wait": [
                Bug(KERNEL, "c.wait_keys();\n    c.take_turn", "c.take_turn"),
                Bug(KERNEL, "c.wait_values();\n    prim::wgmma_fence();", "prim::wgmma_fence();", "race"),
                Bug(KERNEL, "prim::wgmma_wait<1>();", "prim::wgmma_wait<2>();"),
                Bug(KERNEL, "prim::wgmma_wait<0>();\n    c.release_values();", "c.release_values();"),
                Bug(KERNEL, "prim::cp_async_wait<0>();", ""),
                Bug(LOAD, "wait_full(shared.raw_v[slot], raw_parity);", ""),
                Bug(LOAD, "wait_empty(shared.empty_v[at.slot], at.parity);", "", "race"),
                Bug(LOAD, "raw_parities ^= 1u << slot;", ""),
                Bug(TILE, "parity ^= 1;", ""),
            ],
            "fence": [
                Bug(LOAD, "prim::fence_proxy_async();", "", "race"),
                Bug(KERNEL, "prim::fence_proxy_async();", "", "race"),
                Bug(KERNEL, "prim::wgmma_fence();", ""),
                Bug(
                    KERNEL,
                    "prim::atomic_add_acq_rel(launch.tickets + item.first_item, 1)",
                    "atomicAdd(launch.tickets + item.first_item, 1u)",
                    "race",
                ),
            ],
            "init": [
                Bug(TILE, "init(shared.empty_v[i], 4 * kGroups);", "init(shared.empty_v[i], 1);", "race"),
                Bug(KERNEL, "rows.clear();", ""),
            ],
            "mask": [
                Bug(ROWS, "key0 + kKeys - 1 <= open_last", "key0 + kKeys - 2 <= open_last"),
                Bug(ROWS, "key0 >= open_first && ", ""),
                Bug(ROWS, "p.tree_mask ? committed : 0x7fffffff", "p.tree_mask ? committed + 1 : 0x7fffffff"),
            ],
            "bounds": [
                Bug(LOAD, "in_range(block, a.p.cache.num_blocks)", "block >= 0"),
                Bug(LOAD, "in_range(block, p.cache.num_blocks)", "block >= 0"),
            ],
            "stride": [
                Bug(KERNEL, "cache_map<Tile>(a.p.v_cache", "cache_map<Tile>(a.p.k_cache"),
                Bug(LOAD, "item.b * p.block_table_stride", "item.b * p.max_blocks"),
            ],
            "tail": [
                Bug(LOAD, "key0 + row < item.key_end) continue;", "key0 + row <= item.key_end) continue;"),
                Bug(TILE, "return begin || end;", "return begin;"),
                Bug(TILE, "return begin || end;", "return end;"),
                Bug(KERNEL, "const int here = min(item.num_rows - rows.group * 64, 64);", "const int here = 64;"),
            ],
            "align": [
                Bug(LOAD, "load_eight(from, launch.kv_aligned)", "load_eight(from, true)", "asan"),
            ],
            "order": [
                Bug(
                    KERNEL,
                    "prim::wgmma_wait<0>();\n    c.release_values();",
                    "c.release_values();\n    prim::wgmma_wait<0>();",
                    "race",
                ),
            ],
        },
    ),
    Kernel(
        "delta_prefill_few_rows",
        "delta_prefill_few_rows",
        none="narrow",
        bugs={
            "barrier": [
                Bug(FEW, "__syncthreads();  // nobody reads the item before", "", "race"),
                Bug(FEW, "__syncthreads();  // nobody reads the zeros any more, or the rows before", "", "race"),
                Bug(FEW, "__syncthreads();  // nobody reads the rehearsal's sums any more", "", "race"),
                Bug(FEW, "    __syncthreads();\n    for (int i = thread;", "    for (int i = thread;", "race"),
                Bug(
                    FEW,
                    "if (item.splits == 1) continue;\n    __syncthreads();",
                    "if (item.splits == 1) continue;",
                    "race",
                ),
            ],
            "syncwarp": [
                Bug(
                    FEW_ROWS,
                    "prim::fence_proxy_async();  // before another piece comes to this place\n    __syncwarp();",
                    "",
                    "race",
                ),
                Bug(FEW, "__syncwarp();\n        if (!zeros)", "if (!zeros)", "race"),
            ],
            "wait": [
                Bug(FEW, "pieces.wait(piece);", ""),
                Bug(FEW_ROWS, "/ Tile::kSlots & 1;", "/ Tile::kSlots & 0;", "race"),
            ],
            "fence": [
                Bug(
                    FEW,
                    "prim::atomic_add_acq_rel(a.tickets + item.first_item, 1)",
                    "atomicAdd(a.tickets + item.first_item, 1u)",
                    "race",
                ),
            ],
            "init": [
                Bug(
                    FEW,
                    "prim::mbar_init(prim::smem_u32(&shared.full[i]), 2);",
                    "prim::mbar_init(prim::smem_u32(&shared.full[i]), 1);",
                    "race",
                ),
                Bug(FEW, "rows.clear();", ""),
                Bug(FEW, "pieces.passed += uint32_t(pieces.count);", ""),
            ],
            "mask": [
                Bug(
                    FEW_ROWS,
                    "exists & range_bits(first[h], last[h], key0)",
                    "exists & range_bits(first[h], last[h] + 1, key0)",
                ),
                Bug(FEW_ROWS, "exists & range_bits(first[h], last[h], key0)", "range_bits(first[h], last[h], key0)"),
                Bug(FEW_ROWS, "if (p.tree_mask) see &=", "if (false) see &="),
            ],
            "bounds": [
                Bug(FEW_ROWS, "in_range(block, a.p.cache.num_blocks)", "block >= 0"),
                Bug(FEW, "if (part + j >= part_end) continue;", ""),
            ],
            "stride": [
                Bug(FEW, "launch.v_map = cache_map<Tile>(a.p.v_cache", "launch.v_map = cache_map<Tile>(a.p.k_cache"),
                Bug(FEW, "(w * kRows + within) * kPitch", "(w * kRows + within) * kPitch + 2"),
            ],
            "tail": [
                Bug(FEW_ROWS, "key < item.key_end) continue;", "key <= item.key_end) continue;"),
                Bug(FEW, "if (item.splits > 1 && item.tile_begin >= item.tile_end) break;", "", "race"),
                Bug(FEW, "total, row < num_rows)", "total, true)"),
            ],
            "align": [
                Bug(FEW_ROWS, "if (aligned) {", "if (true) {", "asan"),
            ],
            "order": [
                Bug("delta_prefill.cu", "list_is_new = true;", ""),
                Bug(FEW, "pieces.ask(next, block);\n          next += kFewWarps;", "next += kFewWarps;"),
                Bug(FEW, "pieces.ask(next, block);\n        next = pieces.count;", "next = pieces.count;"),
            ],
        },
    ),
    Kernel(
        "delta_prefill_hopper_fp8",
        "delta_prefill_hopper_fp8",
        none="narrow",
        shared="bounds mask syncwarp",
        bugs={
            "barrier": [
                Bug(LOAD, "prim::named_barrier_sync(kFillBarrier, kFillThreads);", "", "race"),
                Bug(WIDEN, "prim::named_barrier_sync(kGroupBarrier + rows.group, kGroupThreads);", "", "race", nth=1),
            ],
            "wait": [
                Bug(LOAD, "wait_full(shared.full_raw[raw.slot], raw.parity);", ""),
                Bug(LOAD, "wait_empty(empty, at.parity);", "", "race"),
                Bug(LOAD, "wait_empty(shared.empty_raw[raw.slot], raw.parity);", "", "race"),
                Bug(LOAD, "arrive_warp(shared.empty_raw[raw.slot]);", ""),
            ],
            "fence": [
                Bug(LOAD, "prim::fence_proxy_async();", "", "race"),
                Bug(WIDEN, "prim::fence_proxy_async();", "", "race"),
            ],
            "init": [
                Bug(TILE, "init(shared.empty_raw[i], kFillWarps);", "init(shared.empty_raw[i], 1);"),
                Bug(WIDEN, "shared.units[of_item] = unit;", "shared.units[of_item] = 1.f;"),
                Bug(ROWS, "return Tile::kWiden && scale.does_nothing() ? __fmul_rn(x, unit[h]) : x;", "return x;"),
                Bug(ROWS, "s[i] = __fmul_rn(s[i], unit[i / 2 % 2]);", ";"),
                Bug(ROWS, "s[i] = __fmul_rn(s[i], unit[i / 2 % 2]);", "s[i] = __fmul_rn(s[i], unit[i % 2]);"),
                Bug(ROWS, "sum[0][h] = __fmul_rn(sum[0][h], kDrop);", ""),
            ],
            "stride": [
                Bug(LOAD, "land(launch.v_map);", "land(launch.k_map);"),
                Bug(WIDEN, "Tile::at(at / kChunks, at % kChunks, Tile::kPieceBytes)", "uint32_t(at * 16)"),
                Bug(LOAD, "shared.exists[slot][thread] = shared.raw_exists[raw.slot][thread];", ""),
            ],
            "tail": [
                Bug(WIDEN, "row >= end", "row > end"),
                Bug(WIDEN, "row < begin", "row < begin - 1"),
            ],
            "align": [
                Bug(WIDEN, "if (aligned_rows) {", "if (true) {", "asan"),
            ],
            "order": [
                Bug(LOAD, "raw.next(launch.raw_stages);\n        };\n        widen", "};\n        widen"),
                Bug(
                    LOAD,
                    "wait_empty(empty, at.parity);",
                    "wait_empty(empty, at.parity);\n          arrive_warp(shared.empty_raw[raw.slot]);",
                    "race",
                ),
            ],
        },
    ),
]
