"""Calls of verify_drafts for tests: into buffers of garbage, and beside the oracle."""

import dataclasses

import reference_sampling
import torch
from cases import Frozen

NAMES = ("parents", "temperature", "top_k", "top_p", "min_p", "seeds", "positions", "token_bitmask")
DTYPES = {
    "parents": torch.int32, "temperature": torch.float32, "top_k": torch.int32, "top_p": torch.float32,
    "min_p": torch.float32, "seeds": torch.int64, "positions": torch.int64, "token_bitmask": torch.int32,
}  # fmt: skip


@dataclasses.dataclass
class Result:
    tokens: torch.Tensor
    num_tokens: torch.Tensor
    rows: torch.Tensor
    logprobs: torch.Tensor

    def of(self, b):
        return self.tokens[b, : int(self.num_tokens[b])].tolist()


def run(backend, logits, draft_tokens, cu_rows, max_rows=None, want=("rows", "logprobs"), **options):
    """One call into wider buffers of garbage; options may be lists. Checks the padding and that inputs are kept."""
    device, batch = backend.device, len(cu_rows) - 1
    given = {
        name: (torch.tensor(value, dtype=DTYPES[name]) if isinstance(value, list) else value).to(device)
        for name, value in options.items()
        if value is not None
    }
    logits = logits.to(device)
    draft_tokens, cu_rows = (torch.as_tensor(t, dtype=torch.int32).to(device) for t in (draft_tokens, cu_rows))
    counts = (cu_rows[1:] - cu_rows[:-1]).tolist()
    max_rows = max([*counts, 1]) if max_rows is None else max_rows
    wide = [torch.full((batch, max_rows + 3), -77, dtype=torch.int32, device=device) for _ in range(2)]
    wide_logprobs = torch.full((batch, max_rows + 3), 77.0, device=device)
    tokens, rows, logprobs = (t[:, 1 : 1 + max_rows] for t in (*wide, wide_logprobs))
    num_tokens = torch.full((batch,), -77, dtype=torch.int32, device=device)
    before = Frozen(logits=logits, draft_tokens=draft_tokens, cu_rows=cu_rows, **given)
    backend.ops.verify_drafts(
        tokens, num_tokens, rows if "rows" in want else None, logits, draft_tokens, cu_rows,
        *(given.get(name) for name in NAMES), logprobs if "logprobs" in want else None,
    )  # fmt: skip
    before.check()
    for t, fill in ((wide[0], -77), (wide[1], -77), (wide_logprobs, 77.0)):
        assert (t[:, 0] == fill).all() and (t[:, 1 + max_rows :] == fill).all(), "outside the outputs"
    for b in range(batch):
        count = int(num_tokens[b])
        assert 0 <= count <= counts[b]
        assert (tokens[b, count:] == -1).all()
        assert "rows" not in want or (rows[b, count:] == -1).all()
        assert "logprobs" not in want or logprobs[b, count:].isnan().all()
    return Result(tokens, num_tokens, rows, logprobs)


def check(backend, logits, draft_tokens, cu_rows, **options):
    """Compares with the oracle; returns (result, how many sequences were too close to call in float32)."""
    result = run(backend, logits, draft_tokens, cu_rows, **options)
    inputs = {
        name: torch.tensor(v, dtype=DTYPES[name]) if isinstance(v, list) else v.cpu()
        for name, v in options.items()
        if v is not None and name in NAMES
    }
    cpu = [torch.as_tensor(t).cpu() for t in (draft_tokens, cu_rows)]
    walks = reference_sampling.verify_drafts(logits.cpu(), *cpu, **inputs)
    ambiguous = 0
    for b, walk in enumerate(walks):
        if walk.ambiguous and result.of(b) != walk.tokens:
            ambiguous += 1
            continue
        count = len(walk.tokens)
        assert result.of(b) == walk.tokens, f"sequence {b}"
        assert result.rows[b, :count].tolist() == walk.rows, f"sequence {b}"
        got, want = result.logprobs[b, :count].double().cpu(), torch.tensor(walk.logprobs, dtype=torch.float64)
        torch.testing.assert_close(got, want, rtol=2e-6, atol=2e-6)
    return result, ambiguous


def sampling(batch, temperature=1.0, **others):
    options = {"temperature": [temperature] * batch, "seeds": list(range(batch)), "positions": [5] * batch}
    return options | {k: [v] * batch for k, v in others.items()}


def peaked(rows, vocab=10):
    logits = torch.zeros(len(rows), vocab)
    logits[torch.arange(len(rows)), torch.tensor(rows)] = 9.0
    return logits
