"""Types and one-line meanings of the C++ module; the whole picture is in stateful_kv/runtime.py."""

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

class StaleHandle(ValueError):
    """A session or request that was closed, finished or never existed."""

class OutOfBlocks(RuntimeError):
    """The turn cannot finish even with the whole pool to itself, or a prefix does not fit into a RadixTree. All counts
    in blocks."""

    needed: int
    free: int
    evictable: int
    pinned: int

class BlockPool:
    """Reference-counted block ids."""

    def __init__(self, num_blocks: int) -> None: ...
    def alloc(self, n: int) -> NDArray[np.int32] | None:
        """n distinct free blocks with one reference each, or None (and no change)."""
    def ref(self, block: int) -> None: ...
    def unref(self, block: int) -> bool:
        """Drops one reference; True when that freed the block."""
    def ref_count(self, block: int) -> int: ...
    @property
    def num_free(self) -> int: ...
    @property
    def num_blocks(self) -> int: ...

class RadixTree:
    """Prefixes of tokens over cache blocks, token-granular. Leaves are evicted from their tails, in the order of the
    policy, "lru" or "turns" as in Runtime."""

    def __init__(self, num_blocks: int, block_size: int, policy: str = "lru") -> None: ...
    def insert(self, tokens: ArrayLike, namespace: str | bytes = "") -> int:
        """Stores a prefix, evicting where needed, and counts as a use of it; returns how many of its tokens were new.
        Raises OutOfBlocks, and then has changed nothing."""
    def match(self, tokens: ArrayLike, namespace: str | bytes = "") -> tuple[int, NDArray[np.int32]]:
        """Longest stored prefix: its length in tokens and its block table; a node is split where it ends inside one.
        No use of the prefix: what is evicted next stays the same."""
    def match_length(self, tokens: ArrayLike, namespace: str | bytes = "") -> int:
        """The length alone; changes nothing."""
    def evict(self, num_blocks: int) -> int:
        """Frees up to num_blocks blocks; returns how many."""
    def check(self) -> None:
        """Recomputes every invariant; raises on a violation."""
    @property
    def num_free(self) -> int: ...
    @property
    def num_evictable(self) -> int: ...
    @property
    def num_nodes(self) -> int: ...

class DraftIndex:
    """Incremental prompt lookup with the meaning of ops.propose_drafts; O(1) amortised per token, forks share."""

    def __init__(self, max_ngram: int = 4, min_ngram: int = 1) -> None: ...
    def extend(self, tokens: ArrayLike) -> None: ...
    def truncate(self, length: int) -> None:
        """Forgets tokens from `length` on."""
    def fork(self) -> DraftIndex: ...
    def propose(self, k: int, latest: bool = True) -> NDArray[np.int32]:
        """At most k tokens that followed the last n tokens before, for the longest n that occurred, the latest time or
        the first; may be empty."""
    def occurrences(self, shortest: int = 1) -> NDArray[np.int64]:
        """Where tokens lie that followed earlier occurrences of the last n tokens, for the longest n, latest first,
        then of shorter ones; at most 32 places are looked at."""
    def __len__(self) -> int: ...

class StepInfo:
    """Extents of a planned step; see stateful_kv.runtime."""

    @property
    def num_tokens(self) -> int: ...
    @property
    def num_seqs(self) -> int:
        """Rows of the batch: highest used one + 1."""
    @property
    def num_copies(self) -> int: ...
    @property
    def num_logit_rows(self) -> int: ...
    @property
    def max_seqlen_q(self) -> int: ...
    @property
    def max_seqlen_k(self) -> int: ...
    @property
    def max_rows_per_seq(self) -> int:
        """Most logit rows of one sequence."""
    @property
    def num_blocks_used_in_table(self) -> int:
        """Longest block table of the batch."""
    @property
    def any_sampled(self) -> bool: ...
    @property
    def has_trees(self) -> bool:
        """Whether some sequence's drafts are a tree: tree_mask, parents, out_rows, plan_moves()."""

class AheadInfo:
    """The most that a step of the device may have, and the copies it needs; see stateful_kv.runtime."""

    @property
    def num_rows(self) -> int:
        """Rows of tokens, drafts included. 0: nothing will run before results are taken, and nothing was planned."""
    @property
    def num_logit_rows(self) -> int: ...
    @property
    def max_rows(self) -> int:
        """Rows of tokens of one sequence."""
    @property
    def num_copies(self) -> int:
        """Exactly that many copies are to be made before the step."""
    @property
    def any_sampled(self) -> bool: ...

class Runtime:
    """Sessions over one block pool and the planner of their turns. One owner thread."""

    def __init__(
        self,
        num_blocks: int,
        block_size: int = 16,
        max_batch_tokens: int = 2048,
        max_seqs: int = 64,
        max_blocks_per_seq: int = 0,
        max_ngram: int = 4,
        min_ngram: int = 1,
        num_drafts: int = 8,
        latest: bool = True,
        prefix_cache: bool = True,
        policy: str = "lru",
        num_relatives: int = 0,
        num_branches: int = 0,
    ) -> None:
        """max_blocks_per_seq 0 means num_blocks; num_drafts 0 turns speculation off; prefix_cache=False keeps every
        session (with its forks) to itself and drops its KV on close; policy: "lru" or "turns"; num_relatives: how many
        related sessions of the namespace a session drafts from; num_branches: how many other continuations may make the
        drafts (then 63 at most) a tree, 0 to 16."""
    @property
    def buffers(self) -> dict[str, np.ndarray]:
        """Zero-copy views of the step's arrays."""
    def bind(self, arrays: dict[str, np.ndarray]) -> None:
        """Replaces step arrays by the caller's (same shape and dtype, C-contiguous, aligned, writable), cleared
        first. Between any two steps; views of the arrays replaced stay valid, but no step fills them any more."""
    def open(self, namespace: str | bytes = "") -> int: ...
    def fork(self, session: int) -> int:
        """A session with the same tokens that shares all KV until one of the two writes."""
    def rollback(self, session: int, length: int) -> None: ...
    def close(self, session: int) -> None: ...
    def length(self, session: int) -> int: ...
    def resident(self, session: int) -> int:
        """Leading tokens whose KV is in the cache."""
    def set_spans(self, session: int, spans: Iterable[ArrayLike]) -> None:
        """Texts that answers are expected to contain, to draft from; replaces what was set, forks inherit it."""
    def tokens(self, session: int, start: int = 0) -> NDArray[np.int32]:
        """A copy of the committed tokens from `start` on."""
    def request_of(self, session: int) -> int:
        """The id of the request whose turn is in progress, 0 if none."""

    def is_running(self, session: int) -> bool:
        """Whether a request of the session is waiting or running."""
    def submit(
        self,
        session: int,
        tokens: ArrayLike,
        max_tokens: int,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        seed: int = 0,
        stop_token_ids: Sequence[int] | NDArray[np.int32] = (),
        num_drafts: int = -1,
        priority: int = 0,
    ) -> int:
        """Queues a turn and returns its request id. num_drafts -1: the runtime's. Higher priority runs first."""
    def append(self, session: int, tokens: ArrayLike) -> int:
        """A turn whose answer is known: tokens of the session from now on, their KV computed when a turn needs it.
        Returns a request id of its own."""
    def plan(self) -> StepInfo | None:
        """Makes the next step and fills the buffers; None when no request is left."""
    def plan_moves(self) -> int:
        """Of a step with trees, before commit(): fills move_src, move_dst and cu_moves with the accepted rows whose KV
        is to be moved (ops.compact_kv); returns how many."""
    def commit(self, seconds: float = 0.0) -> list[tuple[int, list[int], str | None]]:
        """Takes the step's results: (request id, new tokens, None | "stop" | "length") per request that got tokens.
        seconds: what the step took; draft lengths then follow cost and acceptance."""
    @property
    def step_cost(self) -> tuple[float, float]:
        """Seconds of a step without rows and of each row, as far as measured; 0 while unknown."""
    def cancel_step(self) -> None:
        """The planned step failed: nothing is committed, its blocks go back, the requests stay. Does nothing where no
        step is planned."""
    @property
    def is_step_planned(self) -> bool:
        """Whether plan() was neither committed nor cancelled yet."""
    def plan_ahead(self, max_rows: int, max_stops: int) -> AheadInfo | None:
        """Reserves what one more step of the device may need, takes newcomers in and fills the buffers; None where the
        step is one for plan(), after all results have been taken."""
    def commit_ahead(
        self, request_ids: NDArray[np.int64], results: NDArray[np.int32], seconds: float = 0.0
    ) -> list[tuple[int, list[int], str | None]]:
        """Takes the results of the oldest step under way, [max_seqs, 4 + rows] as ops.commit_step writes them;
        request_ids: the buffer ahead_request when it was launched. Returns events as commit()."""
    def forget_ahead(self) -> None:
        """Results of steps under way will not come, and the device has forgotten everything."""
    def known_tokens(self, request_id: int, start: int = 0) -> NDArray[np.int32]:
        """A copy of a running request's conversation from `start` on, delta and answer so far included."""
    def stop_tokens(self, request_id: int) -> NDArray[np.int32]: ...
    def finish(self, request_id: int, num_keep: int) -> None:
        """Ends a turn early, committing its delta and the first num_keep generated tokens."""
    def abort(self, request_id: int) -> None:
        """Forgets a turn and its statistics: its session is as before submit."""
    def index_drafts(self) -> None:
        """Brings draft indices up to date; call while the device works to hide it. plan() does it where needed."""
    def stats_of(self, request_id: int) -> dict[str, int]: ...
    def stats(self) -> dict[str, int]:
        """Blocks (num_blocks, free, evictable, protected, session_held), nodes, namespaces, sessions, running,
        waiting; counters evicted_blocks, preemptions, steps."""
    def evict(self, num_blocks: int) -> int:
        """Frees up to num_blocks blocks of idle KV; returns how many."""
    def match(self, namespace: str | bytes, tokens: ArrayLike) -> int:
        """Longest cached prefix in tokens."""
    def check(self) -> None:
        """Recomputes every invariant from scratch; raises on a violation. For tests."""
