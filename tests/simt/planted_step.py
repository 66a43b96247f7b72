"""Bugs for plan_step and commit_step; what the two share with the CPU (core/step.h) is tested there."""

from .planted_bug import Bug, Kernel

KERNELS = [
    Kernel(
        "plan_step",
        "plan_step",
        none="syncwarp wait fence align narrow",
        shared="stride",
        bugs={
            "barrier": [
                Bug("cta_sum.cuh", "__syncthreads();  // of the previous call", "", "race"),
                Bug("cta_sum.cuh", "warp_sums[warp] = sum;\n  __syncthreads();", "warp_sums[warp] = sum;\n"),
                Bug("plan_step.cuh", "__syncthreads();  // what rows there are", "", "race"),
            ],
            "init": [
                Bug("cta_sum.cuh", "  total = 0;\n", "  total = 1;\n"),
                Bug("plan_step.cuh", "int64_t i = seen;\n    for", "int64_t i = 0;\n    for"),
                Bug("plan_step.cuh", "drafts = first_draft;\n  for_each", "drafts = 0;\n  for_each"),
                Bug("plan_step.cuh", "wanted = first_wanted;\n  for_each", "wanted = 0;\n  for_each"),
            ],
            "mask": [
                Bug("cta_sum.cuh", "if (lane >= d) sum", "if (lane > d) sum"),
                Bug("plan_step.cuh", "cu[middle] <= i", "cu[middle] < i"),
                Bug("plan_step.cuh", "wish.rows > 0 && i++ < granted) visit", "wish.rows > 0 && i++ <= granted) visit"),
                Bug("plan_step.cuh", "n > 0 ? int32_t(wish.start + n) : 0", "int32_t(wish.start + n)"),
                Bug("plan_step.cuh", "n_logits > 0 ? p.lengths[b] : 0", "p.lengths[b]"),
            ],
            "bounds": [
                Bug("plan_step.cuh", "!in_order(0, length, p.max_history) || ", ""),
                Bug("plan_step.cuh", " || !in_order(0, computed, length)", ""),
                Bug("plan_step.cuh", "min(all_active, min(p.max_tokens, p.max_logit_rows))", "all_active", "asan"),
            ],
            "tail": [
                Bug("plan_step.cuh", "row >= total;", "row > total;"),
                Bug("plan_step.cuh", "i >= total_logits;", "i > total_logits;"),
                Bug("plan_step.cuh", "is_padding ? -1 : step_slot", "is_padding ? 0 : step_slot"),
                Bug("plan_step.cuh", "p.cu_rows[p.batch] = int32_t(total_logits);", ""),
            ],
            "order": [
                Bug("plan_step.cuh", "p.cu_rows[b] = int32_t(logits);\n", "", "plain"),
                Bug("plan_step.cuh", "    rows += n;\n    logits += n_logits;", "    logits += n_logits;"),
            ],
        },
    ),
    Kernel(
        "commit_step",
        "commit_step",
        none="syncwarp wait fence align narrow",
        shared="stride tail",
        bugs={
            "barrier": [
                Bug("commit_step.cuh", "__syncthreads();  // everyone has read the step", "", "race"),
            ],
            "init": [
                Bug("commit_step.cuh", "b = threadIdx.x; b", "b = threadIdx.x + 1; b"),
            ],
            "mask": [
                Bug("commit_step.cuh", "min(logits, p.max_rows)", "min(logits - 1, p.max_rows)"),
                Bug("commit_step.cuh", "% p.ring * p.batch", "% (p.ring - 1) * p.batch"),
            ],
            "bounds": [
                Bug("commit_step.cuh", "min(int64_t(p.num_tokens[b]), most)", "int64_t(p.num_tokens[b])", "asan"),
                Bug("commit_step.cuh", "in_order(0, length, p.max_history) && ", ""),
                Bug("commit_step.cuh", "b < p.batch; b", "b <= p.batch; b", "asan"),
            ],
            "order": [
                Bug("commit_step.cuh", "uint64_t(step) + 1)", "uint64_t(step))"),
            ],
        },
    ),
]  # fmt: skip
