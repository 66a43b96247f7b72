"""The C++ runtime (csrc/runtime) from Python: sessions, radix prefix cache, draft index, step planner. No torch.

One thread owns a `Runtime` and everything made from it; `submit`, `plan`, `commit`, `plan_ahead`, `commit_ahead` and
`index_drafts` release the GIL.
Tokens are int32 arrays of one dimension (numpy, or anything numpy can view). Sessions and requests are integers; one
that is closed or finished raises `StaleHandle` (a ValueError). A call that raises changes nothing; that of plan() and
plan_ahead() for want of memory plans nothing, but may have evicted and let requests in or out of the batch.

```python
runtime = Runtime(num_blocks=4096, block_size=16)
session = runtime.open()
request = runtime.submit(session, tokens, max_tokens=64, stop_token_ids=[2])
while (step := runtime.plan()) is not None:
    forward(runtime.buffers, step)          # ends by writing out_tokens and out_num_tokens
    for request_id, new_tokens, finish_reason in runtime.commit():
        ...
```

The step: `plan()` fills `runtime.buffers`, numpy views of memory that stays where it is (`bind` puts in the caller's
own arrays, pinned memory for instance). Let `s` be the `StepInfo` returned. In this order the caller
1. copies blocks: `copy_src`, `copy_dst`, `copy_num_tokens` [:s.num_copies] (`ops.copy_blocks`), before anything is
   appended,
2. feeds `token_ids`, `positions` [:s.num_tokens] and appends their KV at `slot_mapping`; -1 means that the token's
   KV is in the cache already (a turn always feeds at least one token, to have logits),
3. attends with `cu_seqlens_q` [s.num_seqs + 1], `seqused_k` [s.num_seqs], `block_table` [s.num_seqs, :] and
   `s.max_seqlen_q`; rows of the batch that are free are empty sequences. A request keeps its row while it runs, and a
   row of the table keeps its entries: entries `table_begin[row]` to `table_end[row]` are what this step added,
4. takes logits of the rows `logit_rows` [:s.num_logit_rows] and verifies (`ops.verify_drafts`) with `draft_tokens`,
   `cu_rows`, `temperature`, `top_k`, `top_p`, `min_p`, `seeds` and `positions=sample_positions`; `s.any_sampled` tells
   whether any temperature is above 0,
5. writes `out_tokens` [max_seqs, 1 + num_drafts] and `out_num_tokens` [max_seqs]; where `s.has_trees` goes through the
   section on trees; then calls `commit()`. After a failed
   or interrupted forward pass it calls `cancel_step()` instead, which does nothing where no step is planned
   (`is_step_planned`).
Past what the step uses, buffers hold what changes nothing (token, position, count and index 0, slot -1, copies from and
to block -1, empty sequences, greedy rows), so a step can be padded to a captured batch. Only a row of `block_table`
beyond the blocks that `seqused_k` covers, and `out_tokens`, hold what earlier steps left there: block ids that are
valid or -1, not to be read.

`submit` raises `OutOfBlocks` (needed, free, evictable, pinned) for a turn that could not finish even with the whole
pool to itself; every other turn finishes, whatever else runs: `plan` never raises for want of blocks. It evicts idle
prefixes, gives up drafts, then preempts the lowest-priority request admitted last, which later goes on from what is
left of its KV and answers the same. While a request runs, `length` and `tokens` of its session are those before
`submit`.

Steps that the device takes by itself (device_step.py), where lengths and histories lie on it and the host is a step or
more behind: `plan_ahead` reserves blocks for the most that steps under way and one more can write, takes newcomers in
whose tokens to feed are few, and fills copies, block tables, sampling and, for each row of `ahead_request`, what the
device is to know of it (`ahead_joins` 1: everything, tokens from `ahead_history` on; else limits and blocks only; of
blocks always entries `table_begin` to `table_end`: the device keeps what it was told of a row until `forget_ahead`).
Then the caller launches the step, and later hands its results to `commit_ahead`. Requests may be submitted, finished
and aborted meanwhile. Where it returns None, somebody has to wait, to be preempted or to feed more than `max_rows`:
take all results under way, then `plan()`. Draft lengths follow measured times as in `commit`.

`Runtime.stats_of(request_id)`, at any time while the request runs and once after it has finished (of an aborted one
they are gone, and of those never asked for only the latest 4,096 are kept):
prompt_tokens (session plus delta), delta_tokens, reused_tokens (of the prompt, found in the cache), recomputed_tokens
(fed again because their KV had been evicted), fed_tokens (rows fed, drafts included), drafted, accepted, of
both what came from other sources than the conversation itself (drafted_spans, accepted_spans, drafted_relatives,
accepted_relatives) or was a branch of a tree (drafted_branches, accepted_branches), and preemptions.
`Runtime.busy_seconds` is what all calls that release the GIL have taken so far.

Draft sources: what followed the last tokens earlier in the conversation; where they know a longer tail, spans that
`set_spans` gave the session (what a tool's schema fixes of a call), then up to num_relatives sessions: the one it was
forked from and those of the namespace that begin with the same block and took turns latest.

Trees (`num_branches` > 0, steps with `s.has_trees`): besides the first continuation, what followed other places where
the last tokens occurred, here or in the other sources, merged into a tree of at most num_drafts rows. Rows stay
consecutive in their slots, `positions` go by depth. Attention then takes `tree_mask` [s.num_tokens, words of
max_seqlen_q], filled for every row of the step, and verification takes `parents` [:s.num_logit_rows] and returns
`out_rows` [max_seqs, 1 + num_drafts], the rows walked. Before `commit()` comes `plan_moves()`: `move_src`, `move_dst`,
`cu_moves` for `ops.compact_kv`, in every layer, none where it returns 0. Only what is in place is ever published. A
tree is fed where its rows are expected to bring more than as many of the chain (csrc/runtime/draft_tree.h), and only
where no sequence of the step has more than 64 rows: beside one that has, only those leading rows of a tree are fed that
the first continuation has too.
With trees, a sliding window of any layer has to show num_drafts tokens or more before a row's own (`window_left` of
`ops.delta_prefill` at least num_drafts). A narrower one would hide or show drafts by their slots, by which an ancestor
lies nearer than by its position. The runtime does not know the model's windows: Engine refuses such a model, any other
caller has to.
drafted_branches and accepted_branches of `stats_of` count rows beside the chain, and no other source counts these.

Draft lengths: drafts are as long as they come, up to num_drafts, unless commit() is told how long the steps took:
`commit(seconds=...)`. Then a draft is fed while it is expected to raise the batch's tokens per second, by the measured
cost of rows and by how that session's own drafts fared: few drafts or none in large batches and where they fail.

Eviction: `policy="lru"` takes the tail of the least recently used leaf. `policy="turns"` suits agents that take
turns: first what no open session rests on, then sessions that missed several of their usual turns, then the one whose
next turn is expected last (benchmarks/bench_eviction.py compares them).

`BlockPool`, `RadixTree` (over a pool of its own) and `DraftIndex` are the parts, for tests and for custom engines.
"""

from ._runtime import AheadInfo, BlockPool, DraftIndex, OutOfBlocks, RadixTree, Runtime, StaleHandle, StepInfo

__all__ = ["AheadInfo", "BlockPool", "DraftIndex", "OutOfBlocks", "RadixTree", "Runtime", "StaleHandle", "StepInfo"]
