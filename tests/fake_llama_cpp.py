"""A llama_cpp module without llama.cpp: the calls that the adapter makes, on a model that is a sum.

The most likely token after a sequence depends on all of its tokens and is written as that row's logits. Decoding checks
what the real library would get wrong silently: that tokens are fed in order, right behind what the sequence holds.
"""

import types

import numpy as np

VOCAB = 97


def following(tokens: list[int]) -> int:
    """Of few tokens, so that lookup finds something: it depends on the last two and, slowly, on the length."""
    return (3 * tokens[-1] + tokens[-2] + len(tokens) // 40) % 7 if len(tokens) > 1 else tokens[-1] % 7


class Batch:
    def __init__(self, size: int):
        self.n_tokens = 0
        self.token, self.pos, self.n_seq_id, self.logits = ([0] * size for _ in range(4))
        self.seq_id = [[0] for _ in range(size)]


def make() -> types.SimpleNamespace:
    lib = types.SimpleNamespace(__version__="fake", llama_log_callback=lambda f: f, fed=0)
    lib.llama_log_set = lambda *_: None
    lib.llama_backend_init = lambda: None
    lib.llama_model_default_params = lib.llama_context_default_params = types.SimpleNamespace
    lib.llama_model_load_from_file = lambda path, params: "model"
    lib.llama_model_get_vocab = lambda model: "vocab"
    lib.llama_vocab_n_tokens = lambda vocab: VOCAB
    lib.llama_batch_init = lambda n, a, b: Batch(n)
    lib.llama_get_memory = lambda context: context

    def init(model, params):
        lib.room = params.n_ctx // params.n_seq_max
        return [[] for _ in range(params.n_seq_max)]

    def decode(context, b):
        lib.rows = {}
        for i in range(b.n_tokens):
            held = context[b.seq_id[i][0]]
            assert b.pos[i] == len(held) < lib.room
            held.append(b.token[i])
            lib.fed += 1
            if b.logits[i]:
                row = np.zeros(VOCAB, np.float32)
                row[following(held)] = 1
                lib.rows[i] = row
        return 0

    def seq_rm(memory, seq, begin, end):
        assert end == -1
        del memory[seq][max(begin, 0) :]

    def seq_cp(memory, source, target, begin, end):
        assert (begin, end) == (-1, -1) and not memory[target]
        memory[target][:] = memory[source]

    def clear(memory, data):
        for held in memory:
            held.clear()

    lib.llama_init_from_model, lib.llama_decode, lib.llama_memory_clear = init, decode, clear
    lib.llama_memory_seq_rm, lib.llama_memory_seq_cp = seq_rm, seq_cp
    lib.llama_get_logits_ith = lambda context, i: lib.rows[i]
    return lib


class Proposer:
    """Stands for llama-cpp-python's prompt lookup: the earliest place where the last two tokens stood."""

    def __init__(self, max_ngram_size: int, num_pred_tokens: int):
        self.n, self.k = max_ngram_size, num_pred_tokens

    def __call__(self, tokens):
        tokens = tokens.tolist()
        for i in range(len(tokens) - self.n):
            if tokens[i : i + self.n] == tokens[-self.n :]:
                return np.array(tokens[i + self.n : i + self.n + self.k])
        return np.array([], dtype=int)
