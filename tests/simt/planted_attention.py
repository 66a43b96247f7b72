"""Planted bugs of attention."""

from .planted_bug import Bug, Kernel

KERNELS = [
    Kernel(
        "delta_prefill",
        "delta_prefill",
        none="syncwarp narrow",
        bugs={
            "barrier": [
                Bug(
                    "delta_prefill.cuh",
                    "if (threadIdx.x == 0) found = false;\n  __syncthreads();",
                    "if (threadIdx.x == 0) found = false;",
                ),
                Bug("delta_prefill.cuh", "  __syncthreads();\n  return found;", "  return found;"),
                Bug(
                    "delta_prefill_kernel.cuh",
                    "prim::cp_async_wait<1>();\n      __syncthreads();",
                    "prim::cp_async_wait<1>();",
                ),
                Bug(
                    "delta_prefill_kernel.cuh",
                    "widen_tile<Tile, T, kHeadDim>(kv, widened);\n        __syncthreads();",
                    "widen_tile<Tile, T, kHeadDim>(kv, widened);",
                ),
                Bug(
                    "delta_prefill_kernel.cuh",
                    "__syncthreads();  // everyone is done with this buffer before it is filled again",
                    "",
                    "race",
                ),
                Bug(
                    "delta_prefill_kernel.cuh",
                    "__syncthreads();\n    if (threadIdx.x == 0) {\n      is_last",
                    "if (threadIdx.x == 0) {\n      is_last",
                    "race",
                ),
                Bug(
                    "delta_prefill_kernel.cuh",
                    "__syncthreads();\n    if (is_last) combine",
                    "if (is_last) combine",
                    "race",
                ),
            ],
            "wait": [
                Bug("delta_prefill_kernel.cuh", "prim::cp_async_wait<1>();", ""),
                Bug("delta_prefill_kernel.cuh", "prim::cp_async_wait<1>();", "prim::cp_async_wait<2>();"),
                Bug("delta_prefill_kernel.cuh", "prim::cp_async_wait<0>();", ""),
                Bug(
                    "delta_prefill_kernel.cuh",
                    "      prim::cp_async_commit();\n      prim::cp_async_wait",
                    "      prim::cp_async_wait",
                ),
            ],
            "fence": [
                Bug(
                    "delta_prefill_kernel.cuh",
                    "prim::atomic_add_acq_rel(launch.tickets + item.first_slot, 1)",
                    "atomicAdd(launch.tickets + item.first_slot, 1u)",
                    "race",
                ),
            ],
            "init": [
                Bug("delta_prefill.cu", "prim::zero_async(launch.tickets, size_t(launch.num_slots) * 4, s);", ";"),
                Bug("delta_prefill_kernel.cuh", "float s[kKeys / 8][4] = {};", "float s[kKeys / 8][4] = {{1.f}};"),
            ],
            "mask": [
                Bug(
                    "delta_prefill.cuh",
                    "r.last = p.causal ? min(position, w.length - 1)",
                    "r.last = p.causal ? min(position + 1, w.length - 1)",
                ),
                Bug("delta_prefill.cuh", "max(position - p.window_left, 0)", "max(position - p.window_left + 1, 0)"),
                Bug(
                    "delta_prefill.cuh",
                    "const int j = key - (w.length - w.new_tokens);",
                    "const int j = key - (w.length - w.new_tokens) - 1;",
                ),
                Bug("delta_prefill_kernel.cuh", "!all_there || key0 < open_first ||", "!all_there ||"),
            ],
            "bounds": [
                Bug("delta_prefill.cuh", "return in_range(block, p.cache.num_blocks) ? block : -1;", "return block;"),
                Bug("delta_prefill.cuh", "key < item.key_begin || key >= item.key_end || ", ""),
            ],
            "stride": [
                Bug("delta_prefill.cuh", "item.b * p.block_table_stride", "item.b * p.max_blocks"),
                Bug("delta_prefill.cuh", "item.kv_head * v.head_stride", "item.kv_head * k.head_stride"),
                Bug(
                    "delta_prefill_kernel.cuh",
                    "scale_of(p.v_scale, item.b, item.kv_head)",
                    "scale_of(p.v_scale, 0, item.kv_head)",
                ),
                Bug("delta_prefill_kernel.cuh", "p.lse[head * p.lse_head_stride", "p.lse[head * p.total_q", nth=1),
            ],
            "tail": [
                Bug(
                    "delta_prefill.cuh", "min(prefix + last_token + 1, w.length)", "min(prefix + last_token, w.length)"
                ),
                Bug(
                    "delta_prefill_kernel.cuh",
                    "if (row >= item.num_rows) continue;",
                    "if (row > item.num_rows) continue;",
                ),
                Bug("delta_prefill_kernel.cuh", "const bool there = row < item.num_rows;", "const bool there = true;"),
            ],
            "align": [
                Bug(
                    "delta_prefill.cu",
                    "launch.query_aligned = aligned(p.query, size, 16);",
                    "launch.query_aligned = true;",
                ),
            ],
            "order": [
                Bug(
                    "delta_prefill_kernel.cuh",
                    "stages + (buffer ^ 1) * Tile::kStageBytes",
                    "stages + buffer * Tile::kStageBytes",
                ),
            ],
        },
    ),
    Kernel(
        "delta_schedule",
        "delta_prefill",
        none="syncwarp wait fence bounds align narrow order",
        bugs={
            "barrier": [
                Bug(
                    "delta_schedule_kernel.cuh",
                    "if (thread == 0) total_work = 0;\n  __syncthreads();",
                    "if (thread == 0) total_work = 0;",
                    "race",
                ),
                Bug(
                    "delta_schedule_kernel.cuh",
                    "atomicAdd(&total_work, mine);\n  __syncthreads();",
                    "atomicAdd(&total_work, mine);",
                    "race",
                ),
                Bug(
                    "delta_schedule_kernel.cuh",
                    "whole_items[thread + 1] = whole;\n  __syncthreads();",
                    "whole_items[thread + 1] = whole;",
                ),
                Bug(
                    "delta_schedule_kernel.cuh",
                    "  __syncthreads();\n  split = split_items[thread];",
                    "  split = split_items[thread];",
                    "race",
                ),
            ],
            "init": [
                Bug("delta_schedule_kernel.cuh", "if (thread == 0) total_work = 0;", "", "race"),
                Bug("delta_schedule_kernel.cuh", "split_items[0] = whole_items[0] = 0;", "split_items[0] = 0;"),
            ],
            "mask": [
                Bug("delta_schedule.cuh", "(tiles + tiles_per_split - 1) / tiles_per_split", "tiles / tiles_per_split"),
                Bug(
                    "delta_schedule.cuh",
                    "w.tiles = (w.length + tile - 1) / tile - w.first_tile;",
                    "w.tiles = w.length / tile - w.first_tile;",
                ),
            ],
            "stride": [
                Bug("delta_schedule_kernel.cuh", "kScheduleEntry * b + 1", "kScheduleEntry * (b + 1) + 1"),
            ],
            "tail": [
                Bug(
                    "delta_schedule.cuh",
                    "(int64_t(w.new_tokens) * group + kTileRows - 1) / kTileRows",
                    "int64_t(w.new_tokens) * group / kTileRows",
                ),
                Bug(
                    "delta_schedule_kernel.cuh",
                    "min(begin + per_thread, p.batch)",
                    "min(begin + per_thread, p.batch - 1)",
                ),
            ],
        },
    ),
    Kernel(
        "merge_states",
        "merge_states",
        none="barrier wait fence init narrow",
        bugs={
            "syncwarp": [
                Bug("merge_states.cuh", "__syncwarp();", ";"),
            ],
            "mask": [
                Bug("merge_states.cuh", "row < p.total_q * p.num_heads", "row <= p.total_q * p.num_heads"),
            ],
            "bounds": [
                Bug("merge_states.cuh", "use_b ? weight_b * to_float(y.at[e]) : 0.f", "weight_b * to_float(y.at[e])"),
            ],
            "stride": [
                Bug("merge_states.cuh", "head * p.lse_b_stride", "head * p.lse_a_stride"),
                Bug("merge_states.cuh", "head * p.out_b.head_stride", "head * p.head_dim"),
            ],
            "tail": [
                Bug("merge_states.cuh", "at < p.head_dim;", "at < p.head_dim - kCount;"),
                Bug("merge_states.cuh", "at < p.head_dim;", "at <= p.head_dim;"),
            ],
            "align": [
                Bug("merge_states.cu", "aligned(p.out_b, sizeof(T), 16)", "true"),
            ],
            "order": [
                Bug("merge_states.cuh", "if (lane == 0) p.lse[", "p.lse[", "race"),
            ],
        },
    ),
]
