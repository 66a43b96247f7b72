"""The command line: `python -m stateful_kv demo`, also installed as `stateful-kv`."""

from __future__ import annotations

import argparse
import sys

from .demo import main as demo
from .demo.agents import evaluate, train


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="stateful-kv", description="Stateful LLM inference for agents.")
    commands = parser.add_subparsers(dest="command", required=True)
    demo.add_arguments(
        commands.add_parser("demo", help="tool-calling agents on one KV cache", description=demo.__doc__)
    )
    train.add_arguments(commands.add_parser("train", help="train the embedded model", description=train.__doc__))
    evaluate.add_arguments(
        commands.add_parser("evaluate", help="score a model on held-out conversations", description=evaluate.__doc__)
    )
    args = parser.parse_args(argv)
    try:
        return {"demo": demo.main, "train": train.main, "evaluate": evaluate.main}[args.command](args)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
