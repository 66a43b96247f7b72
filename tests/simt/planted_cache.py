"""Planted bugs of the kernels that write and move the KV cache."""

from .planted_bug import Bug, Kernel

KERNELS = [
    Kernel(
        "append_kv",
        "append_kv",
        none="barrier syncwarp wait fence init order",
        bugs={
            "mask": [
                Bug("append_kv.cuh", "token >= p.num_tokens", "token > p.num_tokens"),
            ],
            "bounds": [
                Bug(
                    "append_kv.cuh",
                    "if (!in_range(slot, p.cache.num_blocks * p.cache.block_size)) return;",
                    "if (slot < 0) return;",
                ),
            ],
            "stride": [
                Bug("append_kv.cuh", "head * p.value.head_stride", "head * p.key.token_stride"),
                Bug("append_kv.cuh", "head * p.v_cache.head_stride", "head * p.k_cache.head_stride"),
                Bug("append_kv.cuh", "scale_of(p.v_scale, 0, head)", "scale_of(p.v_scale, 0, 0)"),
                Bug(
                    "common.cuh",
                    "block * cache.block_stride + offset * cache.token_stride",
                    "slot * cache.token_stride",
                ),
            ],
            "tail": [
                Bug("append_kv.cuh", "if (vector >= num_vectors) break;", "if (vector > num_vectors) break;", nth=1),
            ],
            "align": [
                Bug("append_kv.cu", "aligned(p.value, kRow, 16)", "true"),
                Bug("append_kv.cu", "aligned(p.key, kRow, 16)", "true"),
            ],
            "narrow": [
                Bug("common.cuh", "return block * cache.block_stride", "return int(block * cache.block_stride)"),
            ],
        },
    ),
    Kernel(
        "rope_append_kv",
        "rope_append_kv",
        none="syncwarp wait fence",
        shared="narrow",
        bugs={
            "barrier": [
                Bug("rope_append_kv.cuh", "__syncthreads();", ";"),
            ],
            "init": [
                Bug("rope_append_kv.cuh", "float sum = 0.f;", "float sum = 1.f;"),
            ],
            "mask": [
                Bug("rope_append_kv.cuh", "if (i >= p.rotary_dim) return x;", "if (i > p.rotary_dim) return x;"),
                Bug("rope_append_kv.cuh", "group < p.num_heads;", "group <= p.num_heads;"),
            ],
            "bounds": [
                Bug(
                    "rope_append_kv.cuh",
                    "const bool position_ok = in_range(position, p.max_position);",
                    "const bool position_ok = true;",
                ),
                Bug("rope_append_kv.cuh", "  prim::wait_for_grids();\n  if (!position_ok)", "  if (!position_ok)"),
                Bug(
                    "rope_append_kv.cuh",
                    "const bool slot_ok = in_range(slot, a.cache.num_blocks * a.cache.block_size);",
                    "const bool slot_ok = slot >= 0;",
                ),
            ],
            "stride": [
                Bug("rope_append_kv.cuh", "position * p.cos_sin_stride", "position * p.rotary_dim"),
                Bug("rope_append_kv.cuh", "head * a.v_cache.head_stride", "head * a.k_cache.head_stride"),
            ],
            "tail": [
                Bug("rope_append_kv.cuh", "i < p.rotary_dim; i +=", "i < p.rotary_dim - 1; i +="),
                Bug("rope_append_kv.cuh", "if (at >= head_dim) continue;", "if (at > head_dim) continue;"),
            ],
            "align": [
                Bug(
                    "rope_append_kv.cu",
                    "if (rows && weights && a.cache.head_dim % kCount == 0",
                    "if (a.cache.head_dim % kCount == 0",
                ),
            ],
            "order": [
                Bug("rope_append_kv.cuh", "partner[v] = load_partner<T, kCount>(p, row, at, x[v]);", "{}"),
            ],
        },
    ),
    Kernel(
        "copy_blocks",
        "copy_blocks",
        none="barrier syncwarp wait fence init order",
        bugs={
            "mask": [
                Bug("copy_blocks.cuh", "if (int(at) >= num_units) break;", "if (int(at) > num_units) break;", nth=1),
            ],
            "bounds": [
                Bug("copy_blocks.cuh", "!in_range(src, p.cache.num_blocks) ||", ""),
                Bug("copy_blocks.cuh", " || !in_range(dst, p.cache.num_blocks)", ""),
            ],
            "stride": [
                Bug("copy_blocks.cuh", "token * layout.token_stride", "token * p.k_layout.token_stride"),
                Bug("copy_blocks.cuh", "blockIdx.y % 2 ? p.v_layout : p.k_layout", "p.k_layout"),
            ],
            "tail": [
                Bug("copy_blocks.cuh", "min(p.num_tokens[pair], p.cache.block_size)", "p.num_tokens[pair]"),
                Bug("copy_blocks.cu", "ceil_div(units, kCopyTile)", "unsigned(units / kCopyTile + 1) / 2 + 1 - 1"),
            ],
            "align": [
                Bug("layer_table.cuh", "&& aligned(k, size, 16) && aligned(v, size, 16)", ""),
            ],
            "narrow": [
                Bug(
                    "copy_blocks.cuh",
                    "char* to = cache + dst * layout.block_stride * size",
                    "char* to = cache + int(dst * layout.block_stride) * size",
                ),
            ],
        },
    ),
    Kernel(
        "layer_table",
        "copy_blocks",
        none="barrier syncwarp wait fence bounds narrow order",
        shared="align",
        bugs={
            "init": [
                Bug("layer_table.cuh", "p.v_caches[first + i]", "p.v_caches[i]"),
            ],
            "mask": [
                Bug("layer_table.cuh", "first < p.num_layers; first +=", "first + 1 < p.num_layers - 1; first +="),
            ],
            "stride": [
                Bug(
                    "layer_table.cuh", "launch.caches[2 * i + 1] = p.v_caches", "launch.caches[2 * i + 1] = p.k_caches"
                ),
            ],
            "tail": [
                Bug("layer_table.cuh", "f(launch, int(2 * n));", "f(launch, int(2 * n - 1));"),
                Bug(
                    "layer_table.cuh",
                    "std::min<int64_t>(kLayersPerLaunch, p.num_layers - first)",
                    "int64_t(kLayersPerLaunch)",
                ),
            ],
        },
    ),
    Kernel(
        "compact_kv",
        "compact_kv",
        none="barrier syncwarp wait fence",
        shared="align narrow",
        bugs={
            "init": [
                Bug("compact_kv.cuh", "src[i] = dst[i] = -1;", ""),
            ],
            "mask": [
                Bug("compact_kv.cuh", "if (first + i >= end) continue;", "if (first + i > end) continue;"),
            ],
            "bounds": [
                Bug("compact_kv.cuh", "!in_range(s, num_slots) ||", ""),
                Bug("compact_kv.cuh", "!in_range(d, num_slots) ||", ""),
                Bug("compact_kv.cuh", "if (!in_order(begin, end, p.num_moves)) return;", ""),
            ],
            "stride": [
                Bug("compact_kv.cuh", "blockIdx.y % 2 ? p.v_layout : p.k_layout", "p.v_layout"),
            ],
            "tail": [
                Bug("compact_kv.cuh", "first += kMoveBatch", "first += kMoveBatch + 1"),
                Bug(
                    "compact_kv.cu",
                    "ceil_div(units, kCompactThreads)",
                    "unsigned(std::max<int64_t>(1, units / kCompactThreads))",
                ),
            ],
            "order": [
                Bug("compact_kv.cuh", "if (src[i] >= 0 && src[i] == dst[earlier]) unit[i] = unit[earlier];", ""),
                Bug("compact_kv.cuh", "earlier < i; ++earlier", "earlier < i - 1; ++earlier"),
            ],
        },
    ),
]
