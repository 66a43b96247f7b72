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
        none="wait narrow",
        bugs={
            "barrier": [
                Bug(
                    "verify_row.cuh",
                    "  if (threadIdx.x == 0) found = -1;\n  __syncthreads();",
                    "  if (threadIdx.x == 0) found = -1;\n",
                ),
                Bug(
                    "verify_drafts.cuh",
                    "if (lane == 0) warp_logits[warp] = stats;\n    __syncthreads();",
                    "if (lane == 0) warp_logits[warp] = stats;\n",
                ),
                Bug("verify_row.cuh", "  __syncthreads();\n  return is_last;", "  return is_last;", "race"),
                Bug("verify_row.cuh", "__syncthreads();\n  if (is_last_row &&", "if (is_last_row &&"),
            ],
            "syncwarp": [
                Bug("verify_row.cuh", "__syncwarp();", "", "race"),
            ],
            "fence": [
                Bug("verify_row.cuh", "prim::atomic_add_acq_rel(ticket, 1)", "atomicAdd(ticket, 1u)", "race"),
                Bug(
                    "verify_row.cuh",
                    "prim::atomic_add_acq_rel(launch.sequence_tickets + at.b, 1)",
                    "atomicAdd(launch.sequence_tickets + at.b, 1u)",
                    "race",
                ),
            ],
            "init": [
                Bug(
                    "verify_drafts.cu",
                    "prim::zero_async(p.workspace, size_t(lay_out(launch).zeros), s);",
                    "lay_out(launch);",
                ),
            ],
            "mask": [
                Bug("verify_row.cuh", "own.begin <= row &&", "own.begin < row &&"),
                Bug("verify_row.cuh", "r > parent_row &&", "r > parent_row + 1 &&"),
                Bug("verify_row.cuh", "== uint32_t(at.rows - 1)", "== uint32_t(at.rows - 2)"),
                Bug("verify_row.cuh", "lane < splits ? partials[lane]", "lane < splits - 1 ? partials[lane]"),
                Bug("verify_row.cuh", "first + kWarpSize > last_child", "first + kWarpSize >= last_child"),
                Bug("verify_row.cuh", "p.parents ? rows - 1 : min(row + 1, rows - 1)", "min(row + 1, rows - 1)"),
            ],
            "bounds": [
                Bug("verify_drafts.cuh", "if (at.b < 0) return;", ""),
                Bug("verify_row.cuh", "if (token < 0) break;", ""),
                Bug("verify_row.cuh", "if (r >= rows) return;", "", "asan"),
            ],
            "stride": [
                Bug("verify_row.cuh", "row * p.logits_stride", "row * p.vocab"),
                Bug("verify_row.cuh", "row * p.bitmask_stride", "row * (p.vocab / 32)"),
                Bug("verify_row.cuh", "p.rows[b * p.rows_stride + count]", "p.rows[b * p.tokens_stride + count]"),
            ],
            "tail": [
                Bug(
                    "verify_row.cuh",
                    "min(begin + unsigned(launch.tokens_per_split), unsigned(launch.p.vocab))",
                    "min(begin + unsigned(launch.tokens_per_split), unsigned(launch.p.vocab) - 1)",
                ),
                Bug(
                    "verify_row.cuh",
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
                Bug("verify_row.cuh", "partials[split] = mine;\n", ""),
            ],
        },
    ),
    Kernel(
        "verify_cut_rows",
        "verify_drafts",
        none="syncwarp wait narrow order",
        shared="barrier align tail fence stride",
        bugs={
            "init": [
                Bug("verify_drafts.cu", "take(launch.listed, rows);\n", "", "asan"),
                Bug("verify_cut_rows.cuh", "unsigned long long total = 0;", "unsigned long long total = 1ull << 39;"),
            ],
            "mask": [
                Bug("verify_cut_rows.cuh", "order_of(x[e]) < order", "order_of(x[e]) > order"),
                Bug("verify_cut_rows.cuh", "reaching(x, allowed, least)", "allowed"),
                Bug("verify_cut_rows.cuh", "order_of(x[e]) < threshold", "order_of(x[e]) <= threshold"),
                Bug("verify_cut_rows.cuh", "|| launch.largest[at.row] == 0", ""),
                Bug("verify_cut_rows.cuh", "place < kListCapacity", "place < kListCapacity / 8"),
                Bug("verify_cut_rows.cuh", "kFiniteOrder, whole.total,", "kFiniteOrder, mine.total,"),
                Bug("verify_drafts.cuh", "if (more) return;", ""),
                Bug("verify_drafts.cu", "p.top_k || p.top_p || p.min_p", "false"),
            ],
            "bounds": [
                Bug("verify_cut_rows.cuh", "count <= kListCapacity", "true", "asan"),
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
                Bug("short_list.cuh", "__syncthreads();\n  rank_list", "rank_list", "race"),
                Bug("short_list.cuh", "? s.top_k : 0);\n  __syncthreads();", "? s.top_k : 0);\n", "race"),
            ],
            "init": [
                Bug("short_list.cuh", "unsigned long long listed = 0;", "unsigned long long listed = 1ull << 50;"),
            ],
            "mask": [
                Bug("short_list.cuh", "ahead == rank - 1", "ahead == rank / 2 - 1"),
                Bug("short_list.cuh", "ahead == k - 1", "ahead == k"),
                Bug("short_list.cuh", "double(list.before[i]) >= target", "double(list.before[i]) >= target * 1.3"),
                Bug("short_list.cuh", "order < floor || order < least", "order < floor"),
                Bug("short_list.cuh", "if (!settled) return -1;", ""),
            ],
            "bounds": [
                Bug("short_list.cuh", "i < count; i += int(blockDim.x)", "i <= count; i += int(blockDim.x)", "race"),
            ],
        },
    ),
]
