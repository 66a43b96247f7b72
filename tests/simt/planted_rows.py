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
]
