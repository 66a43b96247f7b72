"""Planted bugs of the kernels that draft and verify tokens."""

from .planted_bug import Bug, Kernel

KERNELS = [
    Kernel(
        "propose_drafts",
        "propose_drafts",
        none="syncwarp wait fence narrow order",
        bugs={
            "barrier": [
                Bug("propose_drafts.cuh", "__syncthreads();", ";"),
            ],
            "init": [
                Bug("propose_drafts.cuh", "unsigned long long best = 0;", "unsigned long long best = 1;"),
            ],
            "mask": [
                Bug("propose_drafts.cuh", "while (n < limit &&", "while (n <= limit &&"),
                Bug("propose_drafts.cuh", "if (n < p.min_ngram) return;", "if (n <= p.min_ngram) return;"),
            ],
            "bounds": [
                Bug(
                    "propose_drafts.cuh", "min(int64_t(p.history_lens[b]), p.max_history)", "int64_t(p.history_lens[b])"
                ),
            ],
            "stride": [
                Bug("propose_drafts.cuh", "b * p.history_stride", "b * p.max_history"),
                Bug("propose_drafts.cuh", "b * p.drafts_stride", "b * p.max_drafts"),
            ],
            "tail": [
                Bug("propose_drafts.cuh", "if (tail + thread < length - 1)", "if (tail + thread < length)"),
                Bug("propose_drafts.cuh", "if (thread < to_first_vector)", "if (thread + 1 < to_first_vector)"),
                Bug("propose_drafts.cuh", "w < num_threads / kWarpSize", "w < num_threads / kWarpSize - 1"),
            ],
            "align": [
                Bug("propose_drafts.cuh", "min((4 - misaligned) % 4, length - 1)", "int64_t(misaligned * 0)", "asan"),
            ],
        },
    ),
    Kernel(
        "verify_drafts",
        "verify_drafts",
        none="syncwarp wait narrow",
        bugs={
            "barrier": [
                Bug(
                    "verify_drafts.cuh",
                    "  if (threadIdx.x == 0) found = -1;\n  __syncthreads();",
                    "  if (threadIdx.x == 0) found = -1;\n",
                ),
                Bug(
                    "verify_drafts.cuh",
                    "if (lane == 0) warp_stats[warp] = stats;\n    __syncthreads();",
                    "if (lane == 0) warp_stats[warp] = stats;\n",
                ),
                Bug("verify_drafts.cuh", "__syncthreads();\n  if (!is_last) return;", "if (!is_last) return;", "race"),
                Bug(
                    "verify_drafts.cuh",
                    "__syncthreads();\n  if (threadIdx.x == 0) {\n    launch.drawn",
                    "if (threadIdx.x == 0) {\n    launch.drawn",
                    "race",
                ),
                Bug(
                    "verify_drafts.cuh",
                    "__syncthreads();\n  if (is_last && warp == 0) walk",
                    "if (is_last && warp == 0) walk",
                ),
            ],
            "fence": [
                Bug(
                    "verify_drafts.cuh",
                    "prim::atomic_add_acq_rel(launch.row_tickets + row, 1)",
                    "atomicAdd(launch.row_tickets + row, 1u)",
                    "race",
                ),
                Bug(
                    "verify_drafts.cuh",
                    "prim::atomic_add_acq_rel(launch.sequence_tickets + b, 1)",
                    "atomicAdd(launch.sequence_tickets + b, 1u)",
                    "race",
                ),
            ],
            "init": [
                Bug("verify_drafts.cu", "prim::zero_async(at, size_t(p.total_rows + p.batch) * 4, s);", ""),
            ],
            "mask": [
                Bug("verify_drafts.cuh", "own.begin <= row &&", "own.begin < row &&"),
                Bug("verify_drafts.cuh", "first = row + 1; first < rows", "first = row + 2; first < rows"),
                Bug("verify_drafts.cuh", "== uint32_t(rows - 1)", "== uint32_t(rows - 2)"),
            ],
            "bounds": [
                Bug("verify_drafts.cuh", "if (b < 0) return;", ""),
                Bug("verify_drafts.cuh", "if (token < 0) break;", ""),
            ],
            "stride": [
                Bug("verify_drafts.cuh", "row * p.logits_stride", "row * p.vocab"),
                Bug("verify_drafts.cuh", "row * p.bitmask_stride", "row * (p.vocab / 32)"),
                Bug("verify_drafts.cuh", "p.rows[b * p.rows_stride + count]", "p.rows[b * p.tokens_stride + count]"),
            ],
            "tail": [
                Bug(
                    "verify_drafts.cuh",
                    "min(begin + unsigned(launch.tokens_per_split), unsigned(p.vocab))",
                    "min(begin + unsigned(launch.tokens_per_split), unsigned(p.vocab) - 1)",
                ),
                Bug(
                    "verify_drafts.cuh",
                    "for (int64_t i = count + lane; i < p.max_rows",
                    "for (int64_t i = count + lane; i + 1 < p.max_rows",
                ),
                Bug(
                    "verify_drafts.cu",
                    "ceil_div(ceil_div(p.vocab, launch.splits), 32)",
                    "(p.vocab / launch.splits / 32)",
                ),
            ],
            "align": [
                Bug(
                    "verify_drafts.cu", "if (aligned(p.logits, sizeof(T), {p.logits_stride}, 16))", "if (true)", "asan"
                ),
            ],
            "order": [
                Bug("verify_drafts.cuh", "partials[split] = {best, stats.largest, stats.sum};\n", ""),
            ],
        },
    ),
    Kernel(
        "sample_row",
        "verify_drafts",
        none="syncwarp wait fence narrow order",
        shared="align",
        bugs={
            "barrier": [
                Bug(
                    "sample_row.cuh",
                    "scratch[threadIdx.x / kWarpSize] = value;\n  __syncthreads();",
                    "scratch[threadIdx.x / kWarpSize] = value;",
                ),
                Bug("sample_row.cuh", "__syncthreads();  // scratch may be used again", "", "race"),
                Bug(
                    "sample_row.cuh",
                    "if (threadIdx.x < 8) reached[threadIdx.x] = 0;\n    __syncthreads();",
                    "if (threadIdx.x < 8) reached[threadIdx.x] = 0;",
                    "race",
                ),
                Bug("sample_row.cuh", "    __syncthreads();\n    int choice = 0;", "    int choice = 0;"),
                Bug("sample_row.cuh", "    __syncthreads();\n    found |=", "    found |="),
            ],
            "init": [
                Bug("sample_row.cuh", "if (threadIdx.x < 8) reached[threadIdx.x] = 0;", ""),
            ],
            "mask": [
                Bug("sample_row.cuh", "reached[j] >= unsigned(k)", "reached[j] >= unsigned(k) / 2"),
                Bug("sample_row.cuh", "double(before) < target", "double(before) < target * 1.3"),
                Bug("sample_row.cuh", ">> (id % 32)", ">> ((id + 1) % 32)"),
                Bug("sample_row.cuh", "score + kMaxGumbel < best_score", "score + 1.f < best_score"),
            ],
            "bounds": [
                Bug("sample_row.cuh", "fmaxf(to_float(v.at[e]), -INFINITY)", "to_float(v.at[e])"),
            ],
            "stride": [
                Bug("sample_row.cuh", "step = blockDim.x * kCount", "step = kSampleThreads * kCount"),
            ],
            "tail": [
                Bug("sample_row.cuh", "if (left >= kCount) {", "if (true) {", "asan"),
                Bug("sample_row.cuh", "w < int(blockDim.x) / kWarpSize", "w < int(blockDim.x) / kWarpSize - 1"),
            ],
        },
    ),
    Kernel(
        "short_list",
        "verify_drafts",
        none="syncwarp wait narrow stride order",
        shared="align tail fence",
        bugs={
            "barrier": [
                Bug(
                    "short_list.cuh",
                    "list.ballot[thread] = mine;\n  __syncthreads();",
                    "list.ballot[thread] = mine;\n",
                    "race",
                ),
                Bug("short_list.cuh", "list.threshold = mine;\n  __syncthreads();", "list.threshold = mine;\n", "race"),
                Bug("short_list.cuh", "list.kth = 0;\n  __syncthreads();", "list.kth = 0;\n", "race"),
                Bug("short_list.cuh", "  });\n  __syncthreads();\n  if (list.count", "  });\n  if (list.count", "race"),
                Bug("short_list.cuh", "__syncthreads();\n  rank_list", "rank_list", "race"),
                Bug("short_list.cuh", "? s.top_k : 0);\n  __syncthreads();", "? s.top_k : 0);\n", "race"),
            ],
            "init": [
                Bug("short_list.cuh", "list.count = list.kth = 0;", "list.count = 0;", "race"),
            ],
            "mask": [
                Bug("short_list.cuh", "ahead == rank - 1", "ahead == rank / 2 - 1"),
                Bug("short_list.cuh", "ahead == k - 1", "ahead == k"),
                Bug("short_list.cuh", "double(list.before[i]) >= target", "double(list.before[i]) >= target * 1.3"),
                Bug("short_list.cuh", "order < floor || order < least", "order < floor"),
                Bug("short_list.cuh", "if (!settled) return -1;", ""),
            ],
            "bounds": [
                Bug("short_list.cuh", "if (list.count > kListCapacity) return -1;", ""),
            ],
        },
    ),
]
