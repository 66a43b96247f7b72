"""merge_states against the same sum in plain torch.

python benchmarks/bench_merge_states.py [--json FILE]
"""

import argparse

import torch
from common import interleaved, print_table, write_json

import stateful_kv as skv

HEADS, DIM = 32, 128


def measure(tokens: int, dtype: torch.dtype) -> dict:
    torch.manual_seed(0)
    out_a, out_b = torch.randn(2, tokens, HEADS, DIM).to(dtype)
    lse_a, lse_b = torch.randn(2, HEADS, tokens)
    out, lse = torch.empty_like(out_a), torch.empty_like(lse_a)

    def plain():
        torch.logaddexp(lse_a, lse_b, out=lse)
        weight_a, weight_b = ((part - lse).exp().T[..., None] for part in (lse_a, lse_b))
        out.copy_(out_a.float() * weight_a + out_b.float() * weight_b)

    times = interleaved({"ours": lambda: skv.ops.merge_states(out_a, lse_a, out_b, lse_b, out, lse), "torch": plain})
    return {
        "tokens": tokens, "dtype": str(dtype)[6:], "us": times["ours"] * 1e6, "torch_us": times["torch"] * 1e6,
        "speedup": times["torch"] / times["ours"],
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json")
    args = parser.parse_args()
    rows = [measure(t, dtype) for t in (1, 64, 2048) for dtype in (torch.float32, torch.bfloat16, torch.float16)]
    print_table(rows)
    if args.json:
        write_json(args.json, "bench_merge_states", {"heads": HEADS, "head_dim": DIM, "rows": rows})


if __name__ == "__main__":
    main()
