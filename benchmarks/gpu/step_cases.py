"""What is timed of the ops that lay out and end a step on the device: batches that decode with drafts."""

import torch

from .cases import Case, int32

BLOCK, BLOCKS, DRAFTS, STOPS = 16, 2048, 8, 16  # of a sequence: 32K tokens


def state_of(target, batch: int) -> dict[str, torch.Tensor]:
    length = torch.arange(batch) * 97 % 20000 + 64
    values = {"lengths": length, "computed": length - 1, "finished": 0 * length, "max_lengths": length + 1000}
    state = {name: t.to(target.device, torch.int32) for name, t in values.items()}
    history = torch.randint(0, 50000, (batch, BLOCK * BLOCKS), dtype=torch.int32, device=target.device)
    return state | {"history": history}


def zeros(target, size: int, dtype=torch.int32) -> torch.Tensor:
    return torch.zeros(size, dtype=dtype, device=target.device)


def plan_case(batch: int) -> Case:
    rows = batch * (1 + DRAFTS)

    def build(target):
        wide = {name: zeros(target, rows, torch.int64) for name in ("positions", "slot_mapping", "logit_rows")}
        out = {name: zeros(target, rows) for name in ("token_ids", "draft_tokens")} | wide
        out |= {name: zeros(target, batch + 1) for name in ("cu_seqlens_q", "cu_rows")}
        out |= {"seqused_k": zeros(target, batch), "sample_positions": zeros(target, batch, torch.int64)}
        full = int32(target, [DRAFTS] * batch)
        given = state_of(target, batch) | {
            "drafts": int32(target, [[7] * DRAFTS] * batch), "num_drafts": full, "draft_limits": full.clone(),
            "num_slots": full * 0 + BLOCK * BLOCKS,
            "block_table": torch.arange(batch * BLOCKS, dtype=torch.int32, device=target.device).view(batch, BLOCKS),
        }  # fmt: skip
        return {"ours": lambda: target.ops.plan_step(**out, **given, block_size=BLOCK, max_rows=1 + DRAFTS)}

    return Case("plan_step", {"batch": batch, "rows": rows}, rows * 44 + batch * 60, build)


def commit_case(batch: int) -> Case:
    rows = 1 + DRAFTS

    def build(target):
        given = state_of(target, batch) | {
            "results": torch.zeros(2, batch, 4 + rows, dtype=torch.int32, device=target.device),
            "step": zeros(target, 1, torch.int64), "tokens": int32(target, [[7] * rows] * batch),
            "num_tokens": int32(target, [rows // 2] * batch),
            "cu_seqlens_q": int32(target, list(range(0, batch * rows + 1, rows))),
            "cu_rows": int32(target, list(range(0, batch * rows + 1, rows))),
            "stop_tokens": int32(target, [[-1] * STOPS] * batch),
        }  # fmt: skip
        return {"ours": lambda: target.ops.commit_step(**given)}

    return Case("commit_step", {"batch": batch, "rows": batch * rows}, batch * (rows * 12 + STOPS * 4 + 60), build)


def step_cases(tiny: bool) -> list[Case]:
    batches = (2,) if tiny else (1, 8, 64, 512)
    return [make(batch) for make in (plan_case, commit_case) for batch in batches]
