"""The engine on a GPU against float32 on the CPU: python -m benchmarks.gpu.engine_check [--dry-run]

Three conversations in one batch, two turns each, with drafts, a fork and a rollback, on the seeded random checkpoint
of the demo. Greedy tokens of the bfloat16 run have to equal those of float32 on the CPU as far as rounding leaves the
choice: where they part, the logits of the two candidates must lie within the error of bfloat16. One session with and
one without reuse have to agree in the same sense, and with deterministic=True token for token, device_loop=True too.
The dry run takes the emulated kernels for those of the GPU.
"""

import argparse
import sys

import torch

import stateful_kv as skv
from stateful_kv import ops
from stateful_kv.demo.checkpoint import random_checkpoint

from .target import Target

GAP = 0.08  # of float32 logits, in units of their standard deviation: what bfloat16 may turn round


EMULATED = (
    "rope_append_kv", "delta_prefill", "schedule_delta_prefill", "copy_blocks", "verify_drafts", "propose_drafts",
    "plan_step", "commit_step",
)  # fmt: skip


class EmulatedOps:
    """The emulated kernels of everything that touches the cache, the CPU's of the dense parts of the model."""

    def __init__(self, emulated, cpu):
        self.emulated, self.cpu = emulated, cpu

    def __getattr__(self, name: str):
        return getattr(self.emulated if name in EMULATED else self.cpu, name)


def conversation(engine, answer: int) -> list[tuple[list[int], list[int]]]:
    """(everything before the answer, the answer) of each turn."""
    params = skv.SamplingParams(max_tokens=answer)
    sessions = [engine.open_session() for _ in range(3)]
    prompts = [[7 * i % 90 + 20 for i in range(n)] for n in (37, 16, 5)]
    turns = []

    def take(some, news):
        before = [list(s.tokens) + new for s, new in zip(some, news)]
        for text, turn in zip(before, engine.generate([skv.Request(s, n, params) for s, n in zip(some, news)])):
            turns.append((text, list(turn.tokens)))

    take(sessions, prompts)
    take(sessions, [[30, 31, 32, 33], [40] * 20, [50]])
    child = sessions[0].fork()
    sessions[1].rollback(20)
    take([sessions[0], child, sessions[1]], [[60, 61], [62], [63]])
    return turns


def first_wrong(turns, judge) -> str | None:
    """The first token that the judging float32 engine would not have drawn, and not for rounding."""
    for text, answer in turns:
        for i, token in enumerate(answer):
            logits = judge.score(text + answer[:i])
            gap = float((logits.max() - logits[token]) / logits.std())
            if gap > GAP:
                return f"token {i} after {len(text)} is {token}, float32 prefers {int(logits.argmax())} by {gap:.3f}"
    return None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dry-run", action="store_true")
    args = parser.parse_args()
    target, checkpoint = Target(args.dry_run), random_checkpoint()
    answer = 3 if args.dry_run else 24
    judge = skv.Engine.from_pretrained(checkpoint, dtype=torch.float32, num_blocks=64)
    expected = conversation(judge, answer)
    if args.dry_run:
        ops._op = EmulatedOps(target.ops, torch.ops.stateful_kv)

    def engine_of(**options):
        return skv.Engine.from_pretrained(
            checkpoint, device=target.device, dtype=torch.bfloat16, num_blocks=64, **options
        )

    ways = ({"speculation": skv.PromptLookup()}, {"speculation": None, "prefix_cache": False})
    try:
        # With drafts, then without drafts and reuse across sessions: the same answers up to rounding.
        for options in ways:
            turns = conversation(engine_of(deterministic=False, **options), answer)
            same = sum(a == b for a, b in zip(turns, expected))
            real, ops._op = ops._op, torch.ops.stateful_kv
            wrong = first_wrong(turns, judge)
            ops._op = real
            print(
                f"speculation {options['speculation'] is not None}: {same} of {len(turns)} answers equal to float32's"
            )
            if wrong:
                print(f"WRONG: {wrong}")
                return 1
        both = [conversation(engine_of(deterministic=True, **options), answer) for options in ways]
        if both[0] != both[1]:
            print("WRONG: deterministic=True answers otherwise with drafts and reuse than without")
            return 1
        # Steps of the device, on a GPU captured from the second on: the answers of the host's.
        for options in ways:
            if conversation(engine_of(deterministic=True, device_loop=True, **options), answer) != both[0]:
                print(f"WRONG: device_loop=True answers otherwise, {options}")
                return 1
    finally:
        ops._op = torch.ops.stateful_kv
    print("ok: every token within the rounding of bfloat16; deterministic=True: the same tokens both ways")
    return 0


if __name__ == "__main__":
    sys.exit(main())
