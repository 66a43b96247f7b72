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
                    "if (thread == 0) shared.found = false;\n  __syncthreads();",
                    "if (thread == 0) shared.found = false;",
                ),
                Bug(
                    "delta_prefill_kernel.cuh",
                    "__syncthreads();  // the tile is there, and everyone is done with the one before",
                    "",
                ),
                Bug(
                    "delta_prefill_kernel.cuh",
                    "rows.give_scores(sk, exchange);\n          __syncthreads();",
                    "rows.give_scores(sk, exchange);",
                ),
                Bug(
                    "delta_prefill_kernel.cuh",
                    "widen_tile<Tile, T, kHeadDim>(kv, wide, thread);\n        __syncthreads();",
                    "widen_tile<Tile, T, kHeadDim>(kv, wide, thread);",
                ),
                Bug(
                    "delta_prefill_kernel.cuh",
                    "__syncthreads();\n    if (threadIdx.x == 0) {\n      shared.is_last",
                    "if (threadIdx.x == 0) {\n      shared.is_last",
                    "race",
                ),
                Bug(
                    "delta_prefill_kernel.cuh",
                    "__syncthreads();\n    if (shared.is_last) {",
                    "if (shared.is_last) {",
                    "race",
                ),
            ],
            "wait": [
                Bug("delta_prefill_kernel.cuh", "wait_for_copies(stages - 2);", ""),
                Bug("delta_prefill_kernel.cuh", "wait_for_copies(stages - 2);", "wait_for_copies(stages - 1);"),
                Bug("delta_prefill_kernel.cuh", "    wait_for_copies(stages - 1);\n", ""),
                Bug(
                    "delta_prefill_kernel.cuh",
                    "    prim::cp_async_commit();\n  }\n  const uint32_t sq",
                    "  }\n  const uint32_t sq",
                ),
            ],
            "fence": [
                Bug(
                    "delta_prefill_kernel.cuh",
                    "prim::atomic_add_acq_rel(launch.tickets + item.first_item, 1)",
                    "atomicAdd(launch.tickets + item.first_item, 1u)",
                    "race",
                ),
            ],
            "init": [
                Bug("delta_schedule_kernel.cuh", "tickets[i] = 0;", "tickets[i] = 1;"),
                Bug(
                    "attention_rows.cuh",
                    "s[r][n][0] = s[r][n][1] = s[r][n][2] = s[r][n][3] = 0.f;",
                    "s[r][n][0] = s[r][n][1] = s[r][n][2] = s[r][n][3] = 1.f;",
                ),
            ],
            "mask": [
                Bug(
                    "delta_prefill.cuh",
                    "last = p.causal ? min(position, w.length - 1)",
                    "last = p.causal ? min(position + 1, w.length - 1)",
                ),
                Bug("delta_prefill.cuh", "max(position - p.window_left, 0)", "max(position - p.window_left + 1, 0)"),
                Bug(
                    "delta_prefill.cuh",
                    "const int j = key0 - (w.length - w.new_tokens),",
                    "const int j = key0 - (w.length - w.new_tokens) - 1,",
                ),
                Bug("delta_prefill_kernel.cuh", "key0 >= open_first && ", ""),
            ],
            "bounds": [
                Bug(
                    "attention_tile.cuh",
                    "const bool there = in_range(block, p.cache.num_blocks);",
                    "const bool there = block >= 0;",
                ),
                Bug("attention_tile.cuh", "key < item.key_begin || key >= item.key_end || ", ""),
            ],
            "stride": [
                Bug("attention_tile.cuh", "item.b * launch.p.block_table_stride", "item.b * launch.p.max_blocks"),
                Bug("attention_tile.cuh", "offset(p.v_cache)", "offset(p.k_cache)"),
                Bug(
                    "attention_parts.cuh",
                    "scale_of(p.v_scale, item.b, item.kv_head)",
                    "scale_of(p.v_scale, 0, item.kv_head)",
                ),
                Bug("attention_parts.cuh", "p.lse[head * p.lse_head_stride", "p.lse[head * p.total_q"),
            ],
            "tail": [
                Bug(
                    "delta_prefill.cuh", "min(prefix + last_token + 1, w.length)", "min(prefix + last_token, w.length)"
                ),
                Bug(
                    "attention_parts.cuh",
                    "if (row >= item.num_rows) continue;",
                    "if (row > item.num_rows) continue;",
                    nth=1,
                ),
                Bug("attention_tile.cuh", "const bool there = row < item.num_rows;", "const bool there = true;"),
            ],
            "align": [
                Bug(
                    "delta_prefill.cu",
                    "launch.query_aligned = aligned(p.query, size, 16);",
                    "launch.query_aligned = true;",
                ),
            ],
            "order": [
                Bug("delta_prefill_kernel.cuh", "stage == 0 ? stages - 1 : stage - 1", "stage"),
            ],
        },
    ),
    Kernel(
        "delta_schedule",
        "delta_prefill",
        none="syncwarp wait fence bounds align narrow order",
        bugs={
            "barrier": [
                Bug("cta_sum.cuh", "warp_sums[warp] = sum;\n  __syncthreads();", "warp_sums[warp] = sum;"),
                Bug("cta_sum.cuh", "__syncthreads();  // of the previous call", "", "race"),
            ],
            "init": [
                Bug("delta_schedule.cuh", "SequenceWork w{};", "SequenceWork w{};\n  w.first_tile = 1;"),
            ],
            "mask": [
                Bug("delta_schedule.cuh", "(tiles + tiles_per_split - 1) / tiles_per_split", "tiles / tiles_per_split"),
                Bug(
                    "delta_schedule.cuh",
                    "w.tiles = (w.length + shape.tile - 1) / shape.tile - w.first_tile;",
                    "w.tiles = w.length / shape.tile - w.first_tile;",
                ),
            ],
            "stride": [
                Bug(
                    "delta_schedule_kernel.cuh",
                    "kScheduleHeader + kCudaScheduleEntry * b;",
                    "kScheduleHeader + kCudaScheduleEntry * (b + 1);",
                ),
            ],
            "tail": [
                Bug("delta_schedule.cuh", "(rows + shape.tile_rows - 1) / shape.tile_rows", "rows / shape.tile_rows"),
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
