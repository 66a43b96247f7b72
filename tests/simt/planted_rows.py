"""Planted bugs of the kernels that work on rows of activations."""

from .planted_bug import Bug, Kernel

STREAM, FUSED = "row_linear_stream.cuh", "fused_row_linear.cuh"
BARRIER = "prim::named_barrier_sync(kNormBarrier, kNormMaxWarps * kWarpSize);"

KERNELS = [
    Kernel(
        "norm_row",
        "row_norms",
        none="syncwarp wait fence bounds stride order",
        shared="align narrow",
        bugs={
            "barrier": [Bug("norm_row.cuh", "__syncthreads();", ";")],
            "init": [Bug("norm_row.cuh", "float total = 0.f;", "float total = 1.f;")],
            "mask": [
                Bug("norm_row.cuh", "at + e < size ? row[at + e]", "at + e <= size ? row[at + e]"),
                Bug("norm_row.cuh", "i < kHeldGroups ? held_x[i]", "i <= kHeldGroups ? held_x[i]"),
                Bug("norm_row.cuh", "i < kHeldGroups ? held_weight[i]", "i <= kHeldGroups ? held_weight[i]"),
            ],
            "tail": [
                Bug("norm_row.cuh", "if (at + e < size) row[at + e]", "row[at + e]"),
                Bug("norm_row.cuh", "w < blockDim.x / kWarpSize", "w + 1 < blockDim.x / kWarpSize"),
                Bug("norm_row.cuh", "at < hidden;", "at + kGroup<T> < hidden;"),
                Bug("norm_row.cuh", "at = first + kHeldGroups * step;", "at = first + (kHeldGroups + 1) * step;"),
                Bug("norm_row.cuh", "if (first + i * step < hidden) f(", "f("),
                Bug("norm_row.cuh", "if (at < hidden) held[i]", "held[i]"),
            ],
        },
    ),
    Kernel(
        "rms_norm",
        "row_norms",
        none="syncwarp wait fence bounds order",
        shared="barrier mask narrow",
        bugs={
            "init": [Bug("rms_norm.cuh", "float squares = 0.f;", "float squares = 9.f;")],
            "stride": [Bug("rms_norm.cuh", "* p.out_stride", "* p.input_stride")],
            "tail": [
                Bug("rms_norm.cuh", "for_each_group<T>(p.hidden,", "for_each_group<T>(p.hidden - kGroup<T>,"),
                Bug("rms_norm.cuh", "(x, at, p.hidden)", "(x, at, p.hidden + 1)"),
            ],
            "align": [
                Bug("rms_norm.cu", "aligned(p.out, sizeof(T), {p.out_stride}, 16)", "true"),
                Bug("rms_norm.cu", "aligned(p.input, sizeof(T), {p.input_stride}, 16)", "true"),
                Bug("rms_norm.cu", "aligned(p.weight, sizeof(T), {}, 16)", "true"),
                Bug("rms_norm.cu", "p.hidden % kGroup<T> == 0", "true"),
            ],
        },
    ),
    Kernel(
        "fused_add_rms_norm",
        "row_norms",
        none="syncwarp wait fence bounds",
        shared="barrier mask narrow",
        bugs={
            "init": [Bug("fused_add_rms_norm.cuh", "float squares = 0.f;", "float squares = 9.f;")],
            "stride": [Bug("fused_add_rms_norm.cuh", "* p.residual_stride", "* p.input_stride")],
            "tail": [
                Bug("fused_add_rms_norm.cuh", "for_each_group<T>(p.hidden,", "for_each_group<T>(p.hidden - kGroup<T>,"),
                Bug("fused_add_rms_norm.cuh", "(residual, at, p.hidden)", "(residual, at, p.hidden + 1)"),
            ],
            "align": [
                Bug("fused_add_rms_norm.cu", "aligned(p.input, sizeof(T), {p.input_stride}, 16)", "true"),
                Bug("fused_add_rms_norm.cu", "aligned(p.residual, sizeof(T), {p.residual_stride}, 16)", "true"),
                Bug("fused_add_rms_norm.cu", "aligned(p.weight, sizeof(T), {}, 16)", "true"),
            ],
            "order": [
                Bug("fused_add_rms_norm.cuh", "    store_group<T, kWide>(residual, at, p.hidden, sum[i]);\n", ""),
            ],
        },
    ),
    Kernel(
        "silu_and_mul",
        "silu_and_mul",
        none="barrier syncwarp wait fence init bounds narrow order",
        bugs={
            "mask": [Bug("silu_and_mul.cuh", "if (at >= p.size) return;", "if (at > p.size) return;")],
            "stride": [Bug("silu_and_mul.cuh", "* p.out_stride", "* p.size")],
            "tail": [
                Bug("silu_and_mul.cu", "ceil_div(p.size, int64_t(kSiluThreads) * (wide ? kCount : 1))", "1"),
                Bug("silu_and_mul.cu", "p.size % kCount == 0", "true", "asan"),
            ],
            "align": [
                Bug("silu_and_mul.cu", "aligned(p.out, sizeof(T), {p.out_stride}, 16)", "true"),
                Bug("silu_and_mul.cu", "aligned(p.input, sizeof(T), {p.input_stride}, 16)", "true"),
            ],
        },
    ),
    Kernel(
        "row_linear",
        "row_linear",
        none="syncwarp fence bounds",
        bugs={
            "barrier": [Bug("row_linear_mma.cuh", "__syncthreads();", ";", "race")],
            "wait": [
                Bug(
                    "row_linear_mma.cuh",
                    "prim::cp_async_wait<Tile::kStages - 2>();",
                    "prim::cp_async_wait<Tile::kStages - 1>();",
                ),
            ],
            "init": [
                Bug("row_linear_mma.cuh", "[i % 4] = 0.f;", "[i % 4] = 1.f;"),
                Bug("row_linear_mma.cuh", "int stage = 0;", "int stage = Tile::kStage;"),
            ],
            "mask": [
                Bug("row_linear_mma.cuh", "i < left && e < here ?", "i < left && e <= here ?"),
                Bug("row_linear_mma.cuh", "pass_stride, i < left);", "pass_stride, i <= left);"),
                Bug("row_linear_mma.cuh", "if (out_row >= p.rows) continue;", "if (out_row > p.rows) continue;"),
                Bug("row_linear_mma.cuh", "bias && c < columns ?", "bias && c <= columns ?"),
            ],
            "stride": [
                Bug("row_linear_mma.cuh", "out_row * p.out_stride", "out_row * p.n"),
                Bug(
                    "row_linear_mma.cuh",
                    "column / kGroupColumns * l.layout.group_stride",
                    "column / kGroupColumns * l.layout.block_stride",
                ),
                Bug("row_linear_mma.cuh", "kPassRows * launch.p.x_stride", "kPassRows * launch.p.k", nth=1),
                Bug("row_linear.cuh", "p.packed ? padded_k(p.dtype, p.k) : p.weight_stride", "p.weight_stride"),
            ],
            "tail": [
                Bug("row_linear_mma.cuh", "block + Tile::kBlocks <= min(", "block < min("),
                Bug("row_linear_mma.cuh", "(l.p.k + kBlockK - 1) / kBlockK", "l.p.k / kBlockK"),
                Bug("row_linear_mma.cuh", "c * 8 + 1 < columns", "c * 8 < columns"),
            ],
            "align": [
                Bug(
                    "row_linear_mma.cuh",
                    "launch.x_aligned = aligned(p.x, size, {p.x_stride}, 16);",
                    "launch.x_aligned = true;",
                ),
                Bug("row_linear_mma.cuh", "{w.group_stride, w.column_stride, w.block_stride}, 16);", "{}, 1);"),
                Bug(
                    "row_linear_mma.cuh",
                    "launch.out_paired = aligned(p.out, out_size, {p.out_stride}, 2 * out_size);",
                    "launch.out_paired = true;",
                    "asan",
                ),
            ],
            "narrow": [
                Bug("row_linear_mma.cuh", "(first_row + row) * l.p.x_stride", "int((first_row + row) * l.p.x_stride)"),
                Bug("row_linear_mma.cuh", "out_row * p.out_stride", "int(out_row * p.out_stride)"),
            ],
            "order": [
                Bug("row_linear_mma.cuh", "i < Tile::kStages - 1; ++i", "i < Tile::kStages; ++i"),
            ],
        },
    ),
    Kernel(
        "row_linear_stream",
        "row_linear",
        none="fence bounds",
        bugs={
            "barrier": [Bug(STREAM, "__syncthreads();", "", "race")],
            "syncwarp": [Bug(STREAM, "__syncwarp();", "", "race")],
            "wait": [
                Bug(STREAM, "prim::mbar_wait(prim::smem_u32(&shared.full[place.slot]), place.parity);", ""),
                Bug(STREAM, "prim::mbar_wait(prim::smem_u32(&shared.empty[at.slot]), at.parity ^ 1);", ""),
                Bug(STREAM, "at.parity ^ 1", "at.parity"),
                Bug(STREAM, "parity ^= 1;", ""),
            ],
            "init": [
                Bug(STREAM, "(&shared.empty[i]), launch.warps);", "(&shared.empty[i]), 1);", "race"),
                Bug(
                    STREAM,
                    "for (int unit = int(blockIdx.x); unit < launch.units; unit += int(gridDim.x)) {\n"
                    "    LinearWarp<T, StreamTile<kRows>> sums;",
                    "LinearWarp<T, StreamTile<kRows>> sums;\n"
                    "  for (int unit = int(blockIdx.x); unit < launch.units; unit += int(gridDim.x)) {",
                ),
                Bug(STREAM, "StreamChunk weights, x;", "StreamChunk weights, x;\n  x.k = kStreamBoxColumns;"),
            ],
            "mask": [
                Bug(STREAM, "k + kStreamChunk < p.k ||", "k + kStreamChunk <= p.k ||"),
                Bug(STREAM, "unit + int(gridDim.x) < launch.units", "unit + int(gridDim.x) <= launch.units"),
                Bug(STREAM, "if (k < k_end) return;", "if (k <= k_end) return;"),
                Bug(STREAM, "l.p.rows <= kMostStreamRows", "l.p.rows <= kMostStreamRows + 1"),
                Bug("row_linear.cu", "l.p.rows <= 8 ", "l.p.rows <= 9 "),
                Bug("row_linear.cu", "l.p.rows <= 16 ", "l.p.rows <= 17 "),
            ],
            "stride": [
                Bug(STREAM, "unit += int(gridDim.x);", "unit += 1;"),
                Bug(STREAM, "unit += int(gridDim.x)) {", "unit += 1) {"),
                Bug(STREAM, "chunk.unit * launch.warps * kGroupColumns", "chunk.unit * kGroupColumns"),
                Bug(STREAM, "int64_t(unit) * unit_columns", "int64_t(unit) * StreamTile<kRows>::kColumns", nth=1),
                Bug(STREAM, ": uint32_t(Stage::kRowBox);", ": uint32_t(kStreamBoxRowBytes);"),
                Bug(STREAM, "(lane / 8 ^ line % 8) * 16", "lane / 8 * 16"),
                Bug("row_linear.cu", "p.rows, p.x_stride, kRows", "p.rows, p.weight_stride, kRows"),
            ],
            "tail": [
                Bug(STREAM, "b * kBlockK < int(p.k - k)", "(b + 1) * kBlockK < int(p.k - k)"),
                Bug(STREAM, "(launch.l.p.k + kStreamChunk - 1) / kStreamChunk", "launch.l.p.k / kStreamChunk"),
                Bug(STREAM, "min(launch.prefill, left)", "launch.prefill"),
                Bug(STREAM, "spec.size[0] = uint64_t(k);", "spec.size[0] = uint64_t(stride);"),
                Bug(STREAM, "spec.size[1] = uint64_t(lines);", "spec.size[1] = uint64_t(lines + 1);"),
                Bug(
                    STREAM,
                    "launch.units = int(ceil_div(launch.l.p.n, kGroupColumns * launch.warps));",
                    "launch.units = int(launch.l.p.n) / (kGroupColumns * launch.warps);",
                ),
                Bug(STREAM, "std::min(launch.units, prim::num_multiprocessors())", "prim::num_multiprocessors()"),
            ],
            "align": [
                Bug(STREAM, "l.x_aligned && l.weight_aligned &&", "l.weight_aligned &&"),
                Bug(STREAM, "l.x_aligned && l.weight_aligned &&", "l.x_aligned &&"),
            ],
            "narrow": [Bug(STREAM, "uint64_t(2 * stride)", "uint32_t(2 * stride)")],
            "order": [
                Bug(
                    STREAM,
                    "prim::mbar_wait(prim::smem_u32(&shared.empty[at.slot]), at.parity ^ 1);\n"
                    "    copy_weights(weights, at.slot);",
                    "copy_weights(weights, at.slot);\n"
                    "    prim::mbar_wait(prim::smem_u32(&shared.empty[at.slot]), at.parity ^ 1);",
                ),
                Bug(
                    STREAM,
                    "next.next(launch.stages);",
                    "next.next(launch.stages);\n"
                    "      if (lane == 0) prim::mbar_arrive(prim::smem_u32(&shared.empty[at.slot]));\n"
                    "      const int lane = kWarpSize;",
                    "race",
                ),
            ],
        },
    ),
    Kernel(
        "fused_row_linear",
        "fused_row_linear",
        none="syncwarp fence bounds order",
        bugs={
            "barrier": [
                Bug(FUSED, BARRIER, "", "race"),
                Bug(FUSED, BARRIER, "", "race", nth=1),
            ],
            "wait": [Bug(FUSED, "prim::cp_async_wait<0>();", "")],
            "init": [
                Bug(FUSED, "float squares = 0.f, next_squares = 0.f;", "float squares = 9.f, next_squares = 0.f;"),
                Bug(FUSED, "float squares = 0.f;", "float squares = 9.f;"),
                Bug(STREAM, "output.hold(unit);", "if (unit == int(blockIdx.x)) output.hold(unit);"),
            ],
            "mask": [
                Bug("fused_row_linear.cu", "l.rows <= kMostFusedRows", "l.rows <= kMostFusedRows + 1"),
                Bug(STREAM, "i % 2 < at.columns", "i % 2 <= at.columns", "asan"),
                Bug(STREAM, "if (c >= at.columns) continue;", "if (c > at.columns) continue;"),
                Bug(STREAM, "launch.l.p.rows && i % 2", "launch.l.p.rows + 1 && i % 2", "asan"),
                Bug(STREAM, "if (at.row + i * 8 >= p.rows) continue;", ""),
                Bug(STREAM, "launch.halved ? at.columns == 1 : c < at.columns", "c < at.columns"),
            ],
            "stride": [
                Bug(FUSED, "from += p.x_stride", "from += p.k"),
                Bug(FUSED, "i / kPieces * count + row", "i / kPieces + row * count"),
                Bug("fused_row_linear.cu", "uint64_t(2 * p.weight_stride)", "uint64_t(2 * p.k)"),
                Bug("fused_row_linear.cu", "spec.stride_bytes[1] * spec.size[1]", "spec.stride_bytes[1]"),
                Bug(STREAM, "lane / 4 * p.out_stride", "lane / 4 * p.n"),
                Bug(STREAM, "launch.halved ? launch.l.p.n / 2 : 1", "1"),
                Bug(STREAM, "(lane % 2 * launch.warps + warp)", "(lane % 2 + warp)"),
                Bug(STREAM, "column >> launch.halved", "column"),
                Bug(STREAM, "uint32_t(k) / kStreamBoxColumns + uint32_t(block / 2)", "uint32_t(block / 2)"),
            ],
            "tail": [
                Bug(FUSED, "row < to.count; ++row, from", "row + 1 < to.count; ++row, from"),
                Bug(FUSED, "min(row + 1, to.count - 1)", "row + 1", "race"),
                Bug(FUSED, "i < pieces; i += kNormMaxWarps", "i + 1 < pieces; i += kNormMaxWarps"),
                Bug(FUSED, "w < kNormMaxWarps", "w + 1 < kNormMaxWarps"),
                Bug("fused_row_linear.cu", "l.k % kStreamBoxColumns == 0", "l.k % 8 == 0"),
                Bug("fused_row_linear.cu", "rows_memory(l) + kLeastRing <= kMostShared", "true"),
                Bug("fused_row_linear.cu", "ceil_div(p.columns, kAddThreads)", "p.columns / kAddThreads"),
                Bug(FUSED, "if (column >= p.columns) return;", ""),
                Bug(STREAM, "min(kRows == 8 ? lane % 8 : lane % 16, last)", "kRows == 8 ? lane % 8 : lane % 16"),
            ],
            "align": [
                Bug(
                    "fused_row_linear.cu",
                    "aligned(p.norm_weight, element_size(l.dtype), {}, 16) &&",
                    "",
                ),
            ],
            "narrow": [
                Bug(FUSED, "from += p.x_stride", "from += int(p.x_stride)"),
                Bug(STREAM, "lane / 4 * p.out_stride", "int(lane / 4 * p.out_stride)"),
                Bug(FUSED, "int64_t(blockIdx.x) * p.out_stride", "int(blockIdx.x * p.out_stride)"),
            ],
        },
    ),
    Kernel(  # several, one behind the other
        "decoder_layers",
        "decoder_layers",
        none="barrier syncwarp wait fence init mask bounds stride tail align narrow",
        bugs={
            "order": [
                Bug("delta_prefill.cu", "list_is_new = true;", "", "race"),
                Bug("delta_prefill_few_rows.cuh", "if (!pieces.has_new_keys(warp)) {", "if (true) {", "race"),
                Bug("delta_prefill_few_rows.cuh", "if (!pieces.has_new_keys(second)) {", "if (true) {", "race"),
                Bug(
                    STREAM,
                    "prim::wait_for_grids();\n    for (int i = 0; i < prefill;",
                    "for (int i = 0; i < prefill;",
                    "race",
                ),
                Bug("attention_hopper_load.cuh", "if (!waited && key0", "if (false && key0", "race"),
            ],
        },
    ),
    Kernel(
        "row_linear_f32",
        "row_linear",
        none="syncwarp wait fence bounds align order",
        bugs={
            "barrier": [
                Bug("row_linear_f32.cuh", "__syncthreads();  // the tile before has been read", "", "race"),
                Bug("row_linear_f32.cuh", "__syncthreads();\n#pragma", "\n#pragma", "race"),
            ],
            "init": [Bug("row_linear_f32.cuh", "chain[i / 4][i % 4] = 0.f;", "")],
            "mask": [Bug("row_linear_f32.cuh", "k < k_left ?", "k <= k_left ?")],
            "stride": [
                Bug("row_linear_f32.cuh", "row * p.out_stride", "row * p.n"),
                Bug("row_linear_f32.cuh", "bias[column]", "bias[row]"),
            ],
            "tail": [
                Bug("row_linear_f32.cuh", " || k0 + kF32Depth >= p.k) {", ") {"),
                Bug("row_linear_f32.cuh", "row >= p.rows || column >= p.n", "row >= p.rows || column > p.n"),
            ],
            "narrow": [Bug("row_linear_f32.cuh", "from[line * stride + k]", "from[int(line * stride) + k]")],
        },
    ),
    Kernel(
        "pack_linear_weight",
        "row_linear",
        none="barrier syncwarp wait fence init bounds order",
        bugs={
            "mask": [Bug("pack_linear_weight.cuh", "k < p.k ? *from", "k <= p.k ? *from")],
            "stride": [
                Bug("pack_linear_weight.cuh", "column * p.weight_stride", "column * p.k"),
                Bug("row_linear.cuh", "kGroupColumns * p.k, kBlockK,", "p.k, kBlockK,"),
            ],
            "tail": [Bug("pack_linear_weight.cuh", "at >= p.n * pitch", "at > p.n * pitch")],
            "align": [
                Bug("pack_linear_weight.cu", "aligned(p.weight, sizeof(U), {p.weight_stride}, 16)", "true", "asan"),
                Bug("pack_linear_weight.cu", "p.k % kCount == 0", "true"),
            ],
            "narrow": [Bug("pack_linear_weight.cuh", "column * p.weight_stride", "int(column * p.weight_stride)")],
        },
    ),
]
