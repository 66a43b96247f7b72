"""Engine and Session: conversations that stay on the device, and the turns taken on them.

An Engine owns one model, one block pool and the radix tree over it; a Session is one agent's conversation in it.
One thread owns an engine and all its sessions.
"""

import os
import pathlib
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from . import models
from .arguments import INT32, each, flag, integer, namespace_bytes, shown
from .device_step import DeviceLoop
from .generate import KVCache, Loop, score
from .responses import ResponseCache
from .runtime import Runtime
from .sampling import PromptLookup, SamplingParams
from .session import Event, Request, Session, Tokens, Turn
from .turns import Turns

DTYPES = {"auto": None, "float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


class Engine:
    """One model, one block pool, many sessions.

    num_blocks: cache blocks of block_size tokens; None = 90 % of the free memory of a GPU, or a quarter of the host's
    (at most 8 GiB) on the CPU. speculation: PromptLookup(...) or None. prefix_cache: whether sessions share prefixes
    through the radix tree (a session always keeps its own). max_batch_tokens: rows of one step; longer deltas are
    ingested in chunks. max_seqs: requests that run at the same time. eviction: which idle prefix goes first when the
    pool is full: "lru", or "turns" for agents that take turns, where the least recently used is the next one needed.

    deterministic: True = bitwise the same logits and tokens for a turn from scratch, from the cache, with drafts or
    without, alone or in any batch and in any chunking (same processor, build and model); False = attention may split
    its work by what the batch looks like, and on the CPU read the KV of one or a few tokens where it lies, which is
    faster in long contexts, and on a GPU the linears are torch's. None = True on the CPU, False on CUDA: the linears
    that True takes there need 1.1 to 3.1 times cuBLAS's time on an H200. Trees of drafts (PromptLookup's branches)
    exclude it: a branch's keys are elsewhere while it is verified than in a chain, which changes the order of sums.
    Where branches are asked for, None is False.

    device_loop: True = steps that decode, verify or ingest short deltas run without the host (device_step.py), on a GPU
    as replays of CUDA graphs; the host is one step behind, so that a call of step() returns the events of the step
    before. Answers are the same. Steps of long deltas, of a full pool or with drafts from other conversations are the
    host's as before. Its drafts are chains: branches are refused.

    cascade: whether a prefix that neighbours of a batch share is read once for all of them (ops.delta_prefill_grouped)
    where a model of the costs says that it pays; None = on CUDA, unless deterministic. It excludes deterministic, whose
    bits must not depend on what a row shares; where it is True, deterministic=None is False.

    response_cache: how many answers to keep for prompts that come again: the same tokens in the same namespace, greedy
    or with the same seed, and the same parameters. Such a turn is not computed (TurnStats.from_response_cache); its KV
    is when a later turn needs it. 0 = none. stats() counts response_hits, response_misses and response_tokens.
    """

    def __init__(
        self,
        model: models.Decoder,
        *,
        num_blocks: int | None = None,
        block_size: int = 16,
        speculation: PromptLookup | None = PromptLookup(),  # noqa: B008 - frozen
        prefix_cache: bool = True,
        max_batch_tokens: int = 2048,
        max_seqs: int = 64,
        eviction: str = "lru",
        deterministic: bool | None = None,
        cascade: bool | None = None,
        device_loop: bool = False,
        response_cache: int = 0,
    ):
        if not isinstance(model, models.Decoder):
            raise TypeError(
                f"Engine: model is {shown(model)}, expected a Decoder (Engine.from_pretrained takes a directory)"
            )
        block_size = integer("Engine", "block_size", block_size, 1, 256)
        if num_blocks is not None:
            num_blocks = integer("Engine", "num_blocks", num_blocks, 1, INT32[1])
        max_batch_tokens = integer("Engine", "max_batch_tokens", max_batch_tokens, 1, INT32[1])
        max_seqs = integer("Engine", "max_seqs", max_seqs, 1, 2**20)
        response_cache = integer("Engine", "response_cache", response_cache, 0, INT32[1])
        prefix_cache = flag("Engine", "prefix_cache", prefix_cache)
        device_loop = flag("Engine", "device_loop", device_loop)
        deterministic = None if deterministic is None else flag("Engine", "deterministic", deterministic)
        cascade = None if cascade is None else flag("Engine", "cascade", cascade)
        if not isinstance(eviction, str) or eviction not in ("lru", "turns"):
            raise ValueError(f"Engine: eviction is {shown(eviction)}, expected 'lru' or 'turns'")
        if speculation is not None and not isinstance(speculation, PromptLookup):
            raise TypeError(f"Engine: speculation is {speculation!r}, expected a PromptLookup or None")
        if model.device.type not in ("cpu", "cuda"):
            raise NotImplementedError(f"Engine: the model's device is {model.device}, expected cpu or cuda")
        if model.device.type == "cuda" and model.dtype == torch.float32:
            raise NotImplementedError(
                "Engine: the model's dtype is float32 on cuda, expected float16 or bfloat16: pass dtype=torch.bfloat16"
            )
        draft = speculation or PromptLookup()
        if deterministic is None:
            deterministic = model.device.type == "cpu" and draft.branches == 0 and not cascade
        self.deterministic = deterministic
        if cascade and self.deterministic:
            raise ValueError("Engine: cascade is True, expected False or None where deterministic is True")
        _require_trees_fit(draft, model, self.deterministic, device_loop)
        if self.deterministic:
            model = model.row_independent()
        self.model, self.block_size = model, block_size
        self.max_length = model.config.max_position
        max_blocks_per_seq = -(-self.max_length // block_size)
        if num_blocks is None:
            num_blocks = _default_num_blocks(model, block_size, max_blocks_per_seq * max_seqs)
        else:
            _require_memory(model, block_size, num_blocks)
        max_batch_tokens = min(max_batch_tokens, max_seqs * self.max_length)  # no step has more, and rows take memory
        self.num_blocks = num_blocks
        runtime = Runtime(
            num_blocks=num_blocks,
            block_size=block_size,
            max_batch_tokens=max_batch_tokens,
            max_seqs=min(max_seqs, max_batch_tokens),  # each running request may need a row in a step
            max_blocks_per_seq=max_blocks_per_seq,
            max_ngram=draft.max_ngram,
            min_ngram=draft.min_ngram,
            num_drafts=draft.num_drafts if speculation else 0,
            latest=draft.latest,
            prefix_cache=prefix_cache,
            policy=eviction,
            num_relatives=draft.relatives,
            num_branches=draft.branches,
        )
        num_splits = -1 if self.deterministic else 0
        self._loop = Loop(model, KVCache(model, num_blocks, block_size), runtime, num_splits)
        self._loop.is_timed = speculation is not None and speculation.adaptive
        # Not on the CPU unless asked for: 2 to 8 sequences sharing up to 1024 tokens were slower with AVX2.
        by_device = model.device.type == "cuda" and not self.deterministic
        self._loop.shares_spans = by_device if cascade is None else cascade
        if device_loop:
            self._loop.device_loop = DeviceLoop(
                model, self._loop.cache, runtime, self._loop.planned, draft,
                num_drafts=draft.num_drafts if speculation else 0, max_length=self.max_length, block_size=block_size,
                num_splits=num_splits, is_timed=self._loop.is_timed,
            )  # fmt: skip
        self._turns = Turns(
            self._loop, ResponseCache(response_cache), model.config.vocab_size, self.max_length,
            num_blocks, block_size,
        )  # fmt: skip

    @classmethod
    def from_pretrained(
        cls,
        directory: str | pathlib.Path,
        device: str | torch.device | None = "cpu",
        dtype: torch.dtype | str | None = None,
        **options,
    ) -> "Engine":
        """An engine on a Hugging Face checkpoint directory (Llama, Qwen2, Qwen3, Mistral); `options` as for Engine.

        dtype: torch's or its name; None or "auto" = the one the config names, else float32. Raises NotImplementedError
        naming an unsupported architecture, ValueError naming a missing tensor.
        """
        if not isinstance(directory, (str, os.PathLike)):
            raise TypeError(f"from_pretrained: directory is {shown(directory)}, expected a path")
        named = DTYPES.get(dtype, dtype) if isinstance(dtype, str) else dtype
        if not any(named is known for known in DTYPES.values()):
            raise ValueError(f"from_pretrained: dtype is {shown(dtype)}, expected one of {', '.join(DTYPES)}")
        try:
            place = torch.device("cpu" if device is None else device)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"from_pretrained: device is {shown(device)}, expected 'cpu' or 'cuda'") from error
        return cls(models.load(directory, place, named), **options)

    # ---- conversations ----

    def open_session(self, namespace: str | bytes | None = "", draft_spans: Iterable[Tokens] | None = ()) -> Session:
        """A new, empty conversation. Prefixes are shared within a namespace only (one per tenant, say; None is "").

        draft_spans: texts that its answers, and those of its forks, are expected to contain (spans.call_spans makes
        them of tools' schemas): where an answer begins like one, the rest is drafted. Raises ValueError for bad tokens.
        """
        namespace = namespace_bytes("open_session", namespace)
        texts = () if draft_spans is None else each("open_session", "draft_spans", draft_spans, "sequences of integers")
        spans = [self._turns.checked(text, "open_session", f"draft_spans[{i}]") for i, text in enumerate(texts)]
        session = Session(self._turns, self._loop.runtime.open(namespace), namespace)
        if spans:
            self._loop.runtime.set_spans(session._handle, spans)
        return session

    def generate(self, requests: Sequence[Request]) -> list[Turn]:
        """Takes one turn in each request's session, all in one ragged batch; returns when all are done.

        All or nothing: when one fails, every session is as it was before the call.
        """
        return self._turns.generate(requests, "generate")

    def complete(
        self, prompt: Tokens, params: SamplingParams | None = None, namespace: str | bytes | None = ""
    ) -> Turn:
        """One stateless completion: the longest prefix of the prompt found in the radix tree is reused."""
        with self.open_session(namespace_bytes("complete", namespace)) as session:
            return self._turns.generate([Request(session, prompt, params)], "complete")[0]

    # ---- servers: requests join and leave between steps ----

    def submit(self, request: Request) -> int:
        """Enqueues a turn; step() serves it. Returns its id. Raises ValueError for bad tokens, OutOfBlocks for a turn
        that the whole pool could not hold if its answer got as long as max_tokens."""
        return self._turns.begin(self._turns.prepared(request, "submit")).request_id

    def step(self) -> list[Event]:
        """One step of everything that runs; returns what happened to submitted requests since the last call, one event
        for each that got tokens. With nothing to do it returns an empty list. Under memory pressure requests wait or
        are preempted and go on later; one that could never fit was refused with OutOfBlocks by submit()."""
        return self._turns.step()

    def abort(self, request_id: int) -> None:
        """Forgets a submitted request: its session is as before it, no event of it comes any more; so too where its
        turn is over (the response cache knew the answer, say) and step() has not told of that yet. Once it has, or
        where the session went on since, nothing is left to forget: the turn stands."""
        self._turns.abort(request_id)

    def stats(self) -> dict[str, int]:
        """Counters and the state of the pool: rows_fed (rows that entered the model), steps, blocks_copied, tree_steps
        (steps in which some drafts were a tree), grouped_steps (in which shared prefixes were read once), and all of
        runtime.Runtime.stats()."""
        self._turns.settle()
        loops = [self._loop, *filter(None, [self._loop.device_loop])]
        own = {name: sum(getattr(loop, name) for loop in loops) for name in ("rows_fed", "steps", "blocks_copied")}
        own["tree_steps"], own["grouped_steps"] = self._loop.tree_steps, self._loop.grouped_steps
        return {**self._loop.runtime.stats(), **own, **self._turns.responses.stats()}

    def score(self, tokens: Tokens) -> Tensor:
        """float32 logits [vocab] of what follows `tokens`, computed from nothing, beside the cache."""
        checked = self._turns.checked(tokens, "score")
        if not 1 <= len(checked) <= self.max_length:
            raise ValueError(f"score: got {len(checked)} tokens, expected 1 to {self.max_length}")
        return score(self.model, checked.tolist(), self.block_size, self._loop.num_splits)


def _require_trees_fit(draft: PromptLookup, model: models.Decoder, deterministic: bool, device_loop: bool) -> None:
    if draft.branches == 0:
        return
    for is_on, name, why in (
        (deterministic, "deterministic", "a branch's sums are ordered otherwise than a chain's"),
        (device_loop, "device_loop", "the device's drafts are chains"),
    ):
        if is_on:
            raise ValueError(f"Engine: {name} is True and PromptLookup.branches {draft.branches}: {why}")
    # By its slot an ancestor lies nearer than by its position: a window may hide none of them.
    windows = [layer.window_left for layer in model.layers if 0 <= layer.window_left < draft.num_drafts]
    if windows:
        raise ValueError(
            f"Engine: PromptLookup.num_drafts is {draft.num_drafts} with branches, expected at most the {min(windows)} "
            "tokens before its own that a sliding window of the model shows"
        )


def _default_num_blocks(model: models.Decoder, block_size: int, useful: int) -> int:
    per_block = KVCache.bytes_per_block(model, block_size)
    if model.device.type == "cuda":
        budget = int(torch.cuda.mem_get_info(model.device)[0] * 0.9)
    else:
        budget = min(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES") // 4, 8 << 30)
    return max(1, min(budget // per_block, useful))


def _require_memory(model: models.Decoder, block_size: int, num_blocks: int) -> None:
    """Refuses what could not be there even if nothing else was: allocators fail later, or never and are killed."""
    per_block = KVCache.bytes_per_block(model, block_size)
    if model.device.type == "cuda":
        total = torch.cuda.mem_get_info(model.device)[1]
    else:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if num_blocks > total // per_block:
        raise ValueError(
            f"Engine: num_blocks is {num_blocks}, of {per_block} bytes each, expected at most the {total // per_block} "
            f"that {model.device.type} memory could hold"
        )
