"""llama.cpp as a peer of bench_decode.py: a process that turns a checkpoint into GGUF and decodes on request.

    python llama_cpp_decode.py CHECKPOINT_DIR bf16|f16|f32 THREADS CONTEXT

Needs llama-cpp-python and gguf, not torch. Prints {"ready": version} once the model is loaded; then reads lines
"PROMPT_LENGTH NUM_TOKENS" and answers each with {"seconds": ...}: those of NUM_TOKENS greedy tokens one by one, after
the prompt 0, 1, 2, ... was fed. GGUF has no tokenizer here: token ids go in and come out.
"""

import ctypes
import json
import os
import pathlib
import sys
import tempfile
import time

import gguf
import llama_cpp
import numpy as np

NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
WHOLE = {"model.embed_tokens": "token_embd", "lm_head": "output", "model.norm": "output_norm"}


def bf16_tensors(path: pathlib.Path) -> dict[str, np.ndarray]:
    """The bfloat16 tensors of a safetensors file as uint16: numpy has no bfloat16."""
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    tensors = {}
    for name, entry in json.loads(data[8 : 8 + size]).items():
        if name != "__metadata__":
            assert entry["dtype"] == "BF16", name
            begin, end = (8 + size + offset for offset in entry["data_offsets"])
            tensors[name] = np.frombuffer(data[begin:end], np.uint16).reshape(entry["shape"])
    return tensors


def interleaved_rope(rows: np.ndarray, heads: int) -> np.ndarray:
    """Rows of a query or key projection from halves (Hugging Face) to the pairs that llama.cpp rotates."""
    return rows.reshape(heads, 2, -1, rows.shape[1]).swapaxes(1, 2).reshape(rows.shape)


def write_gguf(checkpoint: pathlib.Path, out: pathlib.Path, kind: str) -> None:
    c = json.loads((checkpoint / "config.json").read_text())
    heads, kv_heads = c["num_attention_heads"], c["num_key_value_heads"]
    head_dim = c.get("head_dim") or c["hidden_size"] // heads
    w = gguf.GGUFWriter(str(out), "llama")
    w.add_context_length(c["max_position_embeddings"])
    w.add_embedding_length(c["hidden_size"])
    w.add_block_count(c["num_hidden_layers"])
    w.add_feed_forward_length(c["intermediate_size"])
    w.add_head_count(heads)
    w.add_head_count_kv(kv_heads)
    w.add_layer_norm_rms_eps(c["rms_norm_eps"])
    w.add_rope_freq_base((c.get("rope_parameters") or c).get("rope_theta", 10000.0))
    w.add_rope_dimension_count(head_dim)
    w.add_key_length(head_dim)
    w.add_value_length(head_dim)
    w.add_vocab_size(c["vocab_size"])
    w.add_tokenizer_model("no_vocab")
    for name, bits in bf16_tensors(checkpoint / "model.safetensors").items():
        base = name.removesuffix(".weight")
        if base in WHOLE:
            target = WHOLE[base]
        else:
            _, _, layer, rest = base.split(".", 3)
            target = f"blk.{layer}.{NAMES[rest]}"
            if rest.endswith(("q_proj", "k_proj")):
                bits = interleaved_rope(bits, heads if rest.endswith("q_proj") else kv_heads)
        values = (bits.astype(np.uint32) << 16).view(np.float32)
        if bits.ndim == 1 or kind == "f32":
            w.add_tensor(target + ".weight", values)
        elif kind == "f16":
            w.add_tensor(target + ".weight", values.astype(np.float16))
        else:
            raw = np.ascontiguousarray(bits).view(np.uint8)
            w.add_tensor(target + ".weight", raw, raw_dtype=gguf.GGMLQuantizationType.BF16)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


class Model:
    def __init__(self, path: pathlib.Path, threads: int, context: int):
        quiet = llama_cpp.llama_log_callback(lambda *_: None)
        llama_cpp.llama_log_set(quiet, ctypes.c_void_p(0))
        self.quiet = quiet  # the library keeps a pointer to it
        llama_cpp.llama_backend_init()
        self.model = llama_cpp.llama_model_load_from_file(str(path).encode(), llama_cpp.llama_model_default_params())
        params = llama_cpp.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = context, 512, 512
        params.n_threads = params.n_threads_batch = threads
        self.context = llama_cpp.llama_init_from_model(self.model, params)
        self.memory = llama_cpp.llama_get_memory(self.context)
        self.batch = llama_cpp.llama_batch_init(512, 0, 1)
        self.vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))

    def feed(self, tokens: list[int], position: int) -> int:
        """The most likely token after them."""
        b = self.batch
        b.n_tokens = len(tokens)
        for i, token in enumerate(tokens):
            b.token[i], b.pos[i], b.n_seq_id[i], b.logits[i] = token, position + i, 1, i + 1 == len(tokens)
            b.seq_id[i][0] = 0
        if llama_cpp.llama_decode(self.context, b) != 0:
            raise RuntimeError("llama_decode failed")
        logits = llama_cpp.llama_get_logits_ith(self.context, -1)
        return int(np.ctypeslib.as_array(logits, shape=(self.vocab,)).argmax())

    def decode(self, prompt_length: int, num_tokens: int) -> float:
        llama_cpp.llama_memory_clear(self.memory, True)
        token = 0
        for start in range(0, prompt_length, 512):
            token = self.feed(list(range(start, min(start + 512, prompt_length))), start)
        begin = time.perf_counter()
        for i in range(num_tokens):
            token = self.feed([token], prompt_length + i)
        return time.perf_counter() - begin


def main() -> None:
    checkpoint, kind, threads, context = sys.argv[1:]
    handle, path = tempfile.mkstemp(suffix=".gguf")
    os.close(handle)
    write_gguf(pathlib.Path(checkpoint), pathlib.Path(path), kind)
    model = Model(pathlib.Path(path), int(threads), int(context))
    os.unlink(path)  # mapped by now
    print(json.dumps({"ready": llama_cpp.__version__}), flush=True)
    for line in sys.stdin:
        prompt_length, num_tokens = map(int, line.split())
        print(json.dumps({"seconds": model.decode(prompt_length, num_tokens)}), flush=True)


if __name__ == "__main__":
    main()
