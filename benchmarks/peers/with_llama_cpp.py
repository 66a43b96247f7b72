"""llama.cpp as a contestant, through its C interface: one sequence per agent.

Variants: `recomputing`; `prefix` (an agent's sequence stays; a new one begins with the longest prefix that another
holds, copied with llama_memory_seq_cp); `lookup` (prefix, and prompt lookup of llama-cpp-python's proposer verified in
one batch). `+plain_attention` switches flash attention off, which is on otherwise. Where the pool is bounded the agent
idle for longest loses its sequence. The weights are converted once and kept below build/proof.
"""

import ctypes
import hashlib
import os
import pathlib
import sys

from contestant import Answer, Contestant, Turn, serve

BATCH = 512
DRAFTS, NGRAM = 10, 2  # the proposer's defaults
CONVERTED = pathlib.Path(__file__).resolve().parents[2] / "build" / "proof" / "gguf"


def gguf_of(checkpoint: pathlib.Path, kind: str) -> pathlib.Path:
    """The checkpoint's weights in llama.cpp's format; a checkpoint is known by its bytes."""
    known = hashlib.sha256()
    for part in [checkpoint / "config.json", *sorted(checkpoint.glob("*.safetensors"))]:
        known.update(part.read_bytes())
    path = CONVERTED / f"{known.hexdigest()[:16]}.{kind}.gguf"
    if not path.exists():
        from llama_cpp_decode import write_gguf

        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".{os.getpid()}")
        write_gguf(checkpoint, part, kind)
        part.rename(path)
    return path


def common_prefix(a: list[int], b: list[int]) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))


class LlamaCpp(Contestant):
    def __init__(self, cell: dict):
        import llama_cpp
        import numpy

        self.lib, self.numpy = llama_cpp, numpy
        self.version = f"llama-cpp-python {llama_cpp.__version__}"
        way, *rest = cell["variant"].split("+")
        if way not in ("recomputing", "prefix", "lookup") or set(rest) - {"plain_attention"}:
            raise ValueError(f"variant: unknown {cell['variant']}")
        self.way, self.proposer = way, None
        if way == "lookup":
            from llama_cpp.llama_speculative import LlamaPromptLookupDecoding

            self.proposer = LlamaPromptLookupDecoding(max_ngram_size=NGRAM, num_pred_tokens=DRAFTS)
        path = gguf_of(pathlib.Path(cell["checkpoint"]), {"float32": "f32", "bfloat16": "bf16"}[cell["dtype"]])
        self._load(path, cell, plain_attention=bool(rest))
        self.start()

    def _load(self, path: pathlib.Path, cell: dict, plain_attention: bool) -> None:
        lib = self.lib
        self.quiet = lib.llama_log_callback(lambda *_: None)  # the library keeps a pointer to it
        lib.llama_log_set(self.quiet, ctypes.c_void_p(0))
        lib.llama_backend_init()
        self.model = lib.llama_model_load_from_file(str(path).encode(), lib.llama_model_default_params())
        room = -(-(cell["max_context"] + DRAFTS + 64) // 256) * 256
        self.num_seqs = cell["agents"]
        if cell["pool_tokens"]:
            self.num_seqs = max(1, min(self.num_seqs, cell["pool_tokens"] // room))
        params = lib.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = room * self.num_seqs, BATCH, BATCH
        params.n_seq_max, params.kv_unified = self.num_seqs, False
        params.n_threads = params.n_threads_batch = cell["threads"]
        params.flash_attn_type = 0 if plain_attention else 1
        if cell["dtype"] == "float32":
            params.type_k = params.type_v = 0  # GGML_TYPE_F32; the default is f16
        self.context = lib.llama_init_from_model(self.model, params)
        if not self.context:
            raise RuntimeError("llama_init_from_model failed")
        self.memory = lib.llama_get_memory(self.context)
        self.batch = lib.llama_batch_init(BATCH, 0, 1)
        self.vocab = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(self.model))

    def start(self) -> None:
        self.lib.llama_memory_clear(self.memory, True)
        self.held: list[list[int]] = [[] for _ in range(self.num_seqs)]  # tokens in each sequence's cache
        self.owner: list[int | None] = [None] * self.num_seqs
        self.used = [0] * self.num_seqs
        self.served = 0

    def _sequence(self, turn: Turn) -> int:
        """The agent's sequence; a new agent gets a free one or that idle for longest, with the best prefix in it."""
        self.served += 1
        if turn.agent in self.owner:
            seq = self.owner.index(turn.agent)
        else:
            seq = min(range(self.num_seqs), key=lambda s: self.used[s])
            self.owner[seq] = turn.agent
            if self.way != "recomputing":
                self._adopt(seq, turn.context)
        self.used[seq] = self.served
        keep = (
            0 if self.way == "recomputing" else min(common_prefix(self.held[seq], turn.context), len(turn.context) - 1)
        )
        self._cut(seq, keep)
        return seq

    def _adopt(self, seq: int, context: list[int]) -> None:
        shared = [common_prefix(held, context) for held in self.held]
        best = max(range(self.num_seqs), key=lambda s: (shared[s], s == seq))
        if best != seq:
            self.lib.llama_memory_seq_rm(self.memory, seq, -1, -1)
            self.lib.llama_memory_seq_cp(self.memory, best, seq, -1, -1)
            self.held[seq] = list(self.held[best])

    def _cut(self, seq: int, length: int) -> None:
        if len(self.held[seq]) > length:
            self.lib.llama_memory_seq_rm(self.memory, seq, length, -1)
            del self.held[seq][length:]

    def _feed(self, seq: int, tokens: list[int], num_logits: int) -> list[int]:
        """Feeds at most BATCH tokens; the most likely token after each of the last num_logits."""
        b, position = self.batch, len(self.held[seq])
        b.n_tokens = len(tokens)
        for i, token in enumerate(tokens):
            b.token[i], b.pos[i], b.n_seq_id[i] = token, position + i, 1
            b.seq_id[i][0], b.logits[i] = seq, len(tokens) - i <= num_logits
        if self.lib.llama_decode(self.context, b) != 0:
            raise RuntimeError("llama_decode failed")
        self.held[seq] += tokens
        rows = range(len(tokens) - num_logits, len(tokens))
        logits = (self.lib.llama_get_logits_ith(self.context, i) for i in rows)
        return [int(self.numpy.ctypeslib.as_array(row, shape=(self.vocab,)).argmax()) for row in logits]

    def turn(self, turn: Turn, first_token) -> Answer:
        seq = self._sequence(turn)
        new = turn.context[len(self.held[seq]) :]
        for start in range(0, len(new), BATCH):
            part = new[start : start + BATCH]
            drawn = self._feed(seq, part, num_logits=int(start + BATCH >= len(new)))
        first_token()
        tokens, drafted, accepted = drawn, 0, 0
        while len(tokens) < turn.answer:
            drafts = self._propose(turn.context + tokens)[: turn.answer - len(tokens) - 1] if self.proposer else []
            base = len(self.held[seq]) + 1
            drawn = self._feed(seq, [tokens[-1], *drafts], num_logits=1 + len(drafts))
            agreed = common_prefix(drafts, drawn)
            tokens = tokens + drawn[: agreed + 1]
            drafted, accepted = drafted + len(drafts), accepted + agreed
            self._cut(seq, base + agreed)
        return Answer(tokens, 0.0, 0.0, len(new), drafted, accepted)

    def _propose(self, conversation: list[int]) -> list[int]:
        return [int(t) for t in self.proposer(self.numpy.array(conversation, dtype=self.numpy.intc))]


if __name__ == "__main__":
    sys.exit(serve(LlamaCpp))
