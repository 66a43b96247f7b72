"""`python -m stateful_kv evaluate`: how well the embedded model calls tools, on held-out conversations.

Every answer is generated greedily, with prompt lookup, from the true conversation before it; then the true answer
takes its place and the conversation goes on. The engine is the project's own: one session per conversation, many of
them in a batch.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import stateful_kv as skv

from ..calls import OPEN, Call, CallError, parse_call
from ..checkpoint import EMBEDDED
from ..options import checkpoint_dir, count, device, output_file, positive, reading_checkpoint
from ..report import decode_steps, machine
from ..text import ChatText
from . import chat
from .episodes import HELD_OUT, Conversation, Mix, episode
from .tasks import Message
from .world import IDENTIFIERS, PATHS, SCHEMAS

MAX_TOKENS = 160
# Always as many drafts as are found: how many of them a machine takes to pay says nothing of the model.
SPECULATION = skv.PromptLookup(adaptive=False)
# Conversations of every kind, and long ones whose contexts go up to what was trained; with their first seeds.
MIXES = {"usual": (HELD_OUT, Mix()), "long": (HELD_OUT + (1 << 20), Mix(max_tasks=16, share_of_all=1.0))}


@dataclass
class Scores:
    """Counts over all generated answers."""

    counts: Counter = field(default_factory=Counter)
    by_tool: Counter = field(default_factory=Counter)
    errors: list[dict[str, str]] = field(default_factory=list)

    def add(self, message: Message, text: str, turn: Any, context: int) -> None:
        kind = "call" if message.call else "text"
        count = self.counts
        count[kind] += 1
        # The first token comes from the prefill; a prompt of which one row is left is fed by a step like any later one.
        prefilled = turn.stats.prompt_tokens - turn.stats.reused_tokens > 1
        count[f"{kind} tokens"] += len(turn.tokens) - prefilled
        count[f"{kind} steps"] += decode_steps(turn) + 1 - prefilled
        count[f"{kind} drafted"] += turn.stats.drafted
        count[f"{kind} accepted"] += turn.stats.accepted
        if not message.call:
            count["text exact"] += text == message.text
            count["call instead of text"] += OPEN in text
            self._note(text == message.text, message, text)
            return
        try:
            call = parse_call(text, SCHEMAS)
        except CallError:
            call = Call("", {})
        exact = call == message.call
        count["valid"] += bool(call.name)
        count["right tool"] += call.name == message.call.name
        count["exact"] += exact
        place = "over 1k" if context > 1024 else "up to 1k"
        count[f"calls {place}"] += 1
        count[f"exact {place}"] += exact
        self.by_tool[message.call.name, exact] += 1
        for key, value in message.call.arguments.items():
            kind = "id" if key in IDENTIFIERS else "path" if key in PATHS else "value"
            count[kind] += 1
            count[f"{kind} right"] += call.name == message.call.name and call.arguments.get(key) == value
        self._note(exact, message, text)

    def _note(self, right: bool, message: Message, text: str) -> None:
        if not right:
            self.errors.append({"expected": message.text, "generated": text})

    def figures(self) -> dict[str, Any]:
        count = self.counts

        def share(part: str, whole: str) -> float | None:
            return count[part] / count[whole] if count[whole] else None

        result: dict[str, Any] = {"calls": count["call"], "texts": count["text"]}
        result |= {name: share(name, "call") for name in ("valid", "right tool", "exact")}
        result |= {f"{name}s right": share(f"{name} right", name) for name in ("id", "value", "path")}
        result |= {f"{name}s": count[name] for name in ("id", "value", "path")}
        result |= {f"exact {place}": share(f"exact {place}", f"calls {place}") for place in ("up to 1k", "over 1k")}
        result |= {"text exact": share("text exact", "text"), "call instead of text": count["call instead of text"]}
        for kind in ("call", "text"):
            result[f"tokens per step, {kind}s"] = share(f"{kind} tokens", f"{kind} steps")
            result[f"drafts accepted, {kind}s"] = share(f"{kind} accepted", f"{kind} drafted")
        tools = sorted({name for name, _ in self.by_tool})
        result["exact by tool"] = {
            n: [self.by_tool[n, True], self.by_tool[n, True] + self.by_tool[n, False]] for n in tools
        }
        return result


class _Walk:
    """One conversation on its way through the engine."""

    def __init__(self, engine: skv.Engine, text: ChatText, conversation: Conversation):
        self.session, self.text = engine.open_session(), text
        self._messages: Iterator = iter(chat.texts(conversation))
        self.delta: list[int] = []
        self.message: Message | None = None
        self._advance()

    def _advance(self) -> None:
        """Up to the next answer, or the end: message is None then."""
        for message, body in self._messages:
            if message.role == "assistant":
                self.message = message
                self.delta += self.text.begin_message("assistant")
                return
            self.delta += self.text.message(message.role, body)
        self.message = None

    def take(self, length: int) -> None:
        """Replaces the generated answer by the true one; `length` = tokens before it."""
        self.session.rollback(length)
        self.delta = self.text.body(self.message.text) + self.text.end_message()
        self._advance()


def evaluate(engine: skv.Engine, text: ChatText, name: str, episodes: int, batch: int = 16) -> Scores:
    """Scores over the answers of `episodes` conversations of a mix; conversations that would not fit are left out."""
    first, mix = MIXES[name]
    scores = Scores()
    params = skv.SamplingParams(max_tokens=MAX_TOKENS, stop_token_ids=text.stop_token_ids)
    pending = (episode(first + idx, mix) for idx in range(episodes))
    running: list[_Walk] = []
    while True:
        for conversation in pending:
            if len(chat.encode(conversation, text)[0]) + MAX_TOKENS > engine.max_length:
                scores.counts["left out"] += 1
                continue
            running.append(_Walk(engine, text, conversation))
            if len(running) == batch:
                break
        if not running:
            return scores
        lengths = [len(walk.session) + len(walk.delta) for walk in running]
        turns = engine.generate([skv.Request(walk.session, walk.delta, params) for walk in running])
        for walk, turn, length in zip(running, turns, lengths):
            scores.add(walk.message, text.decode(turn.tokens), turn, length)
            walk.take(length)
            if walk.message is None:
                walk.session.close()
        running = [walk for walk in running if walk.message is not None]


def run(directory: Path, episodes: int, dtype: str, device: str = "cpu") -> tuple[dict[str, Any], dict[str, Scores]]:
    """Figures of every mix, and the scores behind them."""
    import torch

    with reading_checkpoint():
        text = ChatText.from_checkpoint(directory)
        model = skv.models.load(directory, torch.device(device), getattr(torch, dtype))
    engine = skv.Engine(model, num_blocks=8192, speculation=SPECULATION)
    counts = {"usual": episodes, "long": max(1, episodes // 8)}
    scores = {name: evaluate(engine, text, name, counts[name]) for name in MIXES}
    figures = {name: {"conversations": counts[name], **s.figures()} for name, s in scores.items()}
    return figures, scores


def report(figures: dict[str, Any]) -> str:
    """The figures of one mix as lines of text."""
    f = {key: "none" if value is None else value for key, value in figures.items()}

    def percent(key: str) -> str:
        return f"{f[key]:.1%}" if isinstance(f[key], float) else str(f[key])

    def number(key: str) -> str:
        return f"{f[key]:.2f}" if isinstance(f[key], float) else str(f[key])

    return "\n".join(
        [
            f"{f['conversations']} conversations, {f['calls']} calls, {f['texts']} texts",
            f"  valid calls        {percent('valid')}",
            f"  right tool         {percent('right tool')}",
            f"  exact calls        {percent('exact')} (contexts up to 1k {percent('exact up to 1k')}, over 1k "
            f"{percent('exact over 1k')})",
            f"  arguments right    ids {percent('ids right')} of {f['ids']}, values {percent('values right')} of "
            f"{f['values']}, paths {percent('paths right')} of {f['paths']}",
            f"  exact texts        {percent('text exact')}; {f['call instead of text']} calls instead of a text",
            f"  tokens per step    calls {number('tokens per step, calls')}, texts {number('tokens per step, texts')}",
            f"  drafts accepted    calls {percent('drafts accepted, calls')}, "
            f"texts {percent('drafts accepted, texts')}",
        ]
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model",
        type=checkpoint_dir,
        default=EMBEDDED,
        metavar="DIR",
        help="one that `train` has written (the package's own)",
    )
    parser.add_argument("--episodes", type=positive, default=240, metavar="N", help="held-out conversations (240)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--device", type=device, default="cpu", help="cpu (default) or cuda")
    parser.add_argument("--errors", type=count, default=0, metavar="N", help="show the first N wrong answers")
    parser.add_argument("--json", type=output_file, metavar="FILE", help="write the figures to FILE")


def main(args: argparse.Namespace) -> int:
    figures, scores = run(args.model, args.episodes, args.dtype, args.device)
    for name, part in figures.items():
        print(f"{name}: {report(part)}")
        for error in scores[name].errors[: args.errors]:
            print(f"    expected  {error['expected']!r}\n    generated {error['generated']!r}")
    if args.json:
        model = "embedded" if args.model == EMBEDDED else str(args.model)
        options = {"model": model, "dtype": args.dtype, "device": args.device}
        values = {"machine": machine(), "options": options, "figures": figures}
        args.json.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
    return 0
