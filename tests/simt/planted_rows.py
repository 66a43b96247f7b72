"""Planted bugs of the kernels that work on rows of activations."""

from .planted_bug import Bug, Kernel

KERNELS = [
    Kernel(
        "norm_row",
        "row_norms",
        none="syncwarp wait fence bounds stride order",
        shared="align narrow",
        bugs={
            "barrier": [Bug("norm_row.cuh", "__syncthreads();", ";")],
            "init": [Bug("norm_row.cuh", "float total = 0.f;", "float total = 1.f;")],
            "mask": [Bug("norm_row.cuh", "at + e < size ? row[at + e]", "at + e <= size ? row[at + e]")],
            "tail": [
                Bug("norm_row.cuh", "if (at + e < size) row[at + e]", "row[at + e]"),
                Bug("norm_row.cuh", "w < blockDim.x / kWarpSize", "w + 1 < blockDim.x / kWarpSize"),
                Bug("norm_row.cuh", "at < hidden;", "at + kGroup<T> < hidden;"),
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
            "tail": [Bug("rms_norm.cuh", "at < p.hidden;", "at + kGroup<T> < p.hidden;")],
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
            "tail": [Bug("fused_add_rms_norm.cuh", "at < p.hidden;", "at + kGroup<T> < p.hidden;")],
            "align": [
                Bug("fused_add_rms_norm.cu", "aligned(p.input, sizeof(T), {p.input_stride}, 16)", "true"),
                Bug("fused_add_rms_norm.cu", "aligned(p.residual, sizeof(T), {p.residual_stride}, 16)", "true"),
                Bug("fused_add_rms_norm.cu", "aligned(p.weight, sizeof(T), {}, 16)", "true"),
            ],
            "order": [Bug("fused_add_rms_norm.cuh", "    store_group<T, kWide>(residual, at, p.hidden, sum);\n", "")],
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
                    "row_linear.cu",
                    "launch.x_aligned = aligned(p.x, sizeof(T), {p.x_stride}, 16);",
                    "launch.x_aligned = true;",
                ),
                Bug(
                    "row_linear.cu",
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
