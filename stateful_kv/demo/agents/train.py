"""`python -m stateful_kv train --out DIR`: trains the embedded model from nothing, or goes on where it was stopped.

Data are made while training: episode after episode of the training seeds, never one twice. Optimiser: Muon (Jordan et
al. 2024) for the matrices of the layers, AdamW for embedding and norms; the rate is constant for 40 % of the way and
then falls to zero. The way is measured in tokens, or in minutes where --minutes is given.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from ..options import amount, device, output_dir, positive, seed
from ..text import ChatText
from . import chat
from .episodes import HELD_OUT, Mix, episode
from .network import Network, Shape, save_checkpoint

VALIDATION = HELD_OUT + (1 << 32)  # apart from the seeds that evaluate.py uses
_MUON_RATE, _ADAM_RATE, _SLOW, _MOMENTUM, _WARM_UP, _FALL = 0.012, 5e-4, 0.05, 0.95, 20, 0.4


@dataclass(frozen=True)
class Stage:
    """Up to which part of the way, and what a row of a batch is: tokens, episodes, how often positions jump."""

    until: float
    length: int
    mix: Mix
    jumps: float


# Prompts without tools first: more of a row is answers, and what tools there are is learned from calls.
STAGES = (
    Stage(0.3, 512, Mix(max_tasks=3, share_of_all=0.0, share_of_none=0.7, most_others=1), 0.2),
    Stage(0.6, 1024, Mix(max_tasks=4, share_of_all=0.05, share_of_none=0.3, most_others=3), 0.5),
    Stage(1.0, 1024, Mix(max_tasks=4, share_of_all=0.15, share_of_none=0.1, most_others=4), 0.5),
)
_LONG = Stage(1.0, 4096, Mix(max_tasks=16, share_of_all=0.8), 0.0)
_LONG_FROM, _LONG_SHARE = 0.5, 0.1


def stage_at(progress: float, step: int) -> Stage:
    """The stage of a step; in the second half some steps are of rows as long as the model's context."""
    if progress >= _LONG_FROM and random.Random(f"long {step}").random() < _LONG_SHARE:
        return _LONG
    return next((stage for stage in STAGES if progress < stage.until), STAGES[-1])


class Data:
    """Rows of packed episodes; every step and every worker has seeds of its own."""

    def __init__(self, text: ChatText, rank: int, workers: int):
        self.text, self.rank, self.workers, self.seed = text, rank, workers, rank

    def row(self, stage: Stage) -> tuple[list[int], list[float], list[int]]:
        ids: list[int] = []
        weights: list[float] = []
        while len(ids) <= stage.length:
            more_ids, more_weights = chat.encode(episode(self.seed, stage.mix), self.text)
            self.seed += self.workers
            ids += more_ids
            weights += more_weights
        rng = random.Random(f"row {self.seed}")
        positions, room = list(range(stage.length)), Shape.max_length - stage.length
        if rng.random() < stage.jumps:
            # Positions that jump show the long distances to short rows (Zhu et al. 2023).
            for _ in range(rng.randrange(1, 4)):
                at, by = rng.randrange(1, stage.length), rng.randrange(room // 3)
                positions[at:] = [p + by for p in positions[at:]]
        # Of the context only a part is predicted; it weighs as much as all of it would.
        weights = [w if w >= 1 or rng.random() < 0.12 else 0.0 for w in weights]
        weights = [w if w >= 1 or w == 0 else 0.5 for w in weights]
        return ids[: stage.length + 1], weights[1 : stage.length + 1], positions

    def batch(self, step: int, stage: Stage, tokens: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """ids [rows, length + 1], weights of what is predicted [rows, length], positions [rows, length]."""
        self.seed = (step * 1024) * self.workers + self.rank
        rows = [self.row(stage) for _ in range(max(1, tokens // stage.length))]
        dtypes = (torch.long, torch.float32, torch.long)
        return tuple(torch.tensor(part, dtype=t).to(device) for part, t in zip(zip(*rows), dtypes))


def has_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16; a processor that does not takes twenty times as long as in float32."""
    return device.type != "cpu" or torch.ops.mkldnn._is_mkldnn_bf16_supported()


def orthogonalised(gradient: Tensor) -> Tensor:
    """Newton-Schulz iteration towards U V^T of each matrix [..., rows, columns] (Muon)."""
    x = gradient / (gradient.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    x = x.bfloat16() if has_bfloat16(x.device) else x
    wide = x.shape[-2] <= x.shape[-1]
    x = x if wide else x.mT
    for _ in range(5):
        a = x @ x.mT
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return (x if wide else x.mT).float()


class Optimizer:
    """Muon for the layers' matrices, AdamW for the rest. Workers share the matrices out; `total` sums over workers."""

    def __init__(self, network: Network, rank: int, workers: int, total: Callable[[Tensor], Tensor]):
        self.rank, self.workers, self.total = rank, workers, total
        matrices = [p for block in network.blocks for p in block.parameters() if p.ndim == 2]
        self.groups: dict[tuple[int, ...], list[Tensor]] = {}
        for p in matrices:
            self.groups.setdefault(tuple(p.shape), []).append(p)
        self.momenta = {shape: torch.zeros(len(ps), *shape, device=ps[0].device) for shape, ps in self.groups.items()}
        # Large steps would undo the copying heads, and the embeddings they compare, before anything makes use of them.
        slow = {id(p) for p in network.copying()}
        self.rates = {shape: [_SLOW if id(p) in slow else 1.0 for p in ps] for shape, ps in self.groups.items()}
        taken = {id(p) for p in matrices}
        rest = [p for p in network.parameters() if id(p) not in taken]
        self.adam = torch.optim.AdamW(rest, lr=_ADAM_RATE, betas=(0.9, 0.95), weight_decay=0.0)

    @torch.no_grad()
    def step(self, scale: float) -> None:
        updates = {}
        for shape, parameters in self.groups.items():
            gradient = torch.stack([p.grad for p in parameters])
            momentum = self.momenta[shape].mul_(_MOMENTUM).add_(gradient)
            gradient.add_(momentum, alpha=_MOMENTUM)
            own = slice(self.rank, None, self.workers)
            updates[shape] = torch.zeros_like(gradient)
            updates[shape][own] = orthogonalised(gradient[own])
        if self.workers > 1:
            flat = self.total(torch.cat([update.flatten() for update in updates.values()]))
            parts = flat.split([update.numel() for update in updates.values()])
            updates = {shape: part.view_as(update) for (shape, update), part in zip(updates.items(), parts)}
        for shape, parameters in self.groups.items():
            rate = _MUON_RATE * scale * max(1.0, shape[0] / shape[1]) ** 0.5
            for p, change, factor in zip(parameters, updates[shape], self.rates[shape]):
                p.add_(change, alpha=-rate * factor)
        for group in self.adam.param_groups:
            group["lr"] = _ADAM_RATE * scale
            torch.nn.utils.clip_grad_norm_(group["params"], 1.0)
        self.adam.step()

    def state(self) -> dict[str, Any]:
        return {"momenta": self.momenta, "adam": self.adam.state_dict()}

    def load(self, state: dict[str, Any]) -> None:
        for shape, momentum in state["momenta"].items():
            self.momenta[shape].copy_(momentum)
        self.adam.load_state_dict(state["adam"])


def rate_scale(progress: float, step: int) -> float:
    return min(1.0, (step + 1) / _WARM_UP, max(0.0, (1 - progress) / (1 - _FALL)))


class Trainer:
    """One worker's part of the training; all workers hold the same weights."""

    def __init__(self, args: argparse.Namespace, rank: int, workers: int):
        self.args, self.rank, self.workers = args, rank, workers
        self.device = torch.device(args.device)
        self.tokenizer_file = args.out / "tokenizer.json"
        self.text = ChatText(self.tokenizer_file)
        self.network = Network(Shape(self.text.tokenizer.get_vocab_size()))
        self.network.begin(self.text.tokenizer, args.seed)
        self.network.to(self.device)
        self.optimizer = Optimizer(self.network, rank, workers, self.sum_over_workers)
        self.done = {"step": 0, "tokens": 0, "seconds": 0.0, "log": []}
        self.progress = 0.0
        if self.state_file.exists():
            state = torch.load(self.state_file, map_location=self.device, weights_only=True)
            self.network.load_state_dict(state["network"])
            self.optimizer.load(state["optimizer"])
            self.done = state["done"]
        self.data = Data(self.text, rank, workers)
        self.begin = time.monotonic() - self.done["seconds"]

    @property
    def state_file(self) -> Path:
        return self.args.out / "training.pt"

    def measure_progress(self) -> float:
        self.done["seconds"] = time.monotonic() - self.begin
        limit = self.args.minutes * 60 if self.args.minutes else None
        return self.done["seconds"] / limit if limit else self.done["tokens"] / self.args.tokens

    def losses(self, ids: Tensor, weights: Tensor, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Per predicted token: loss, weight, whether it was predicted right."""
        chosen = weights > 0
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=has_bfloat16(self.device)):
            logits = self.network(ids[:, :-1], positions, chosen)
        target = ids[:, 1:][chosen]
        return F.cross_entropy(logits.float(), target, reduction="none"), weights[chosen], logits.argmax(-1) == target

    def sum_over_workers(self, values: Tensor) -> Tensor:
        if self.workers > 1:
            dist.all_reduce(values)
        return values

    def step(self) -> float:
        """One step of all workers; returns the loss."""
        done = self.done
        batch = self.data.batch(
            done["step"], stage_at(self.progress, done["step"]), self.args.batch // self.workers, self.device
        )
        loss, weight, _ = self.losses(*batch)
        mean = (loss * weight).sum() / weight.sum()
        mean.backward()
        parameters = list(self.network.parameters())
        done["tokens"] += self.args.batch
        # Gradients, loss and the way so far (as the first worker sees it) travel in one vector.
        own = torch.tensor([mean.item() / self.workers, self.measure_progress() if self.rank == 0 else 0.0])
        flat = torch.cat([*(p.grad.flatten() / self.workers for p in parameters), own.to(self.device)])
        flat = self.sum_over_workers(flat)
        offset = 0
        for p in parameters:
            p.grad.copy_(flat[offset : offset + p.numel()].view_as(p))
            offset += p.numel()
        self.optimizer.step(rate_scale(self.progress, done["step"]))
        self.network.zero_grad()
        self.progress = float(flat[-1])
        done["step"] += 1
        return float(flat[-2])

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Loss and accuracy on answers and on arguments' values of held-out episodes, next tokens of the true text."""
        sums = torch.zeros(5, device=self.device)
        for idx in range(self.rank, self.args.check_episodes, self.workers):
            ids, weights = chat.encode(episode(VALIDATION + idx, Mix(share_of_all=0.1)), self.text)
            length = min(len(ids), Shape.max_length) - 1
            ids, weights = ids[: length + 1], [w if w >= 1 else 0.0 for w in weights[1 : length + 1]]
            parts = (torch.tensor([ids]), torch.tensor([weights]), torch.arange(length)[None])
            loss, weight, right = self.losses(*(part.to(self.device) for part in parts))
            value = weight > 1
            sums += torch.stack([loss.sum(), right.sum(), torch.tensor(len(loss), device=self.device),
                                 right[value].sum(), value.sum()])  # fmt: skip
        loss, right, count, right_values, values = self.sum_over_workers(sums).tolist()
        return {"loss": loss / count, "accuracy": right / count, "values": right_values / values}

    def save(self) -> None:
        """The state to go on from, and the checkpoint as it is."""
        if self.rank:
            return
        state = {"network": self.network.state_dict(), "optimizer": self.optimizer.state(), "done": self.done}
        torch.save(state, self.state_file.with_suffix(".new"))
        os.replace(self.state_file.with_suffix(".new"), self.state_file)
        save_checkpoint(self.network, self.args.out, self.tokenizer_file)
        (self.args.out / "training.json").write_text(json.dumps(self.done, indent=1) + "\n", encoding="utf-8")

    def check(self, running: float) -> None:
        """Validates, logs and saves."""
        figures = {"step": self.done["step"], "tokens": self.done["tokens"], "seconds": self.done["seconds"]}
        figures |= {"train": running, **self.validate()}
        self.done["log"].append(figures)
        self.save()
        if self.rank == 0:
            print("\r\033[K" + "  ".join(f"{k} {v:.4g}" for k, v in figures.items()), flush=True)

    def run(self) -> None:
        running, first, begin = None, self.done["step"], time.monotonic()
        now = torch.tensor([self.measure_progress() if self.rank == 0 else 0.0])
        self.progress = float(self.sum_over_workers(now))
        # Every worker must go the same way: all decisions hang on counts and on the progress that they share.
        while self.progress < 1 and (self.args.steps is None or self.done["step"] - first < self.args.steps):
            loss = self.step()
            running = loss if running is None else 0.95 * running + 0.05 * loss
            if self.done["step"] % self.args.check_every == 0:
                self.check(running)
            if self.rank == 0:
                speed = self.args.batch * (self.done["step"] - first) / (time.monotonic() - begin)
                show(self.progress, self.done["step"], running, speed)
        if running is not None:
            self.check(running)


def show(progress: float, step: int, loss: float, speed: float) -> None:
    """The progress bar on stderr, where that is a terminal."""
    if sys.stderr.isatty():
        bar = "#" * int(30 * min(1.0, progress))
        line = f"[{bar:<30}] {progress:.1%}, step {step}, loss {loss:.3f}, {speed:.0f} tokens/s"
        print(f"\r\033[K{line}", end="", file=sys.stderr, flush=True)


def plot(out: Path) -> None:
    """loss.png beside the checkpoint, where matplotlib is installed."""
    try:
        import matplotlib
    except ImportError:
        print("no loss.png: matplotlib is not installed (pip install 'stateful_kv[train]')")
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot

    log = json.loads((out / "training.json").read_text(encoding="utf-8"))["log"]
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4))
    tokens = [entry["tokens"] / 1e6 for entry in log]
    for axes, names in ((left, ("train", "loss")), (right, ("accuracy", "values"))):
        for name in names:
            axes.plot(tokens, [entry[name] for entry in log], label=name)
        axes.set_xlabel("million tokens")
        axes.legend()
    left.set_yscale("log")
    figure.tight_layout()
    figure.savefig(out / "loss.png", dpi=110)


def _work(rank: int, args: argparse.Namespace, workers: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(max(1, args.threads // workers))
    try:
        if workers > 1:
            dist.init_process_group("gloo", store=dist.FileStore(str(args.out / "workers"), workers), rank=rank,
                                    world_size=workers)  # fmt: skip
        Trainer(args, rank, workers).run()
        if workers > 1:
            dist.destroy_process_group()
    finally:
        torch.set_num_threads(before)  # a single worker runs in the caller's own process


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--out", type=output_dir, required=True, metavar="DIR", help="checkpoint and state to go on from"
    )
    parser.add_argument("--device", type=device, default="cpu", help="cpu (default) or cuda")
    parser.add_argument("--tokens", type=amount, default=5e6, metavar="N", help="length of the training (5e6)")
    parser.add_argument("--minutes", type=amount, metavar="M", help="length of the training in minutes instead")
    parser.add_argument("--steps", type=positive, metavar="N", help="stop after N steps; the next run goes on")
    parser.add_argument("--threads", type=positive, default=os.cpu_count() or 1, help="on the CPU: one worker each")
    parser.add_argument("--check-every", type=positive, default=50, metavar="N", help="steps between saves (50)")
    parser.add_argument(
        "--check-episodes", type=positive, default=32, metavar="N", help="held-out conversations then (32)"
    )
    parser.add_argument("--batch", type=positive, default=4096, metavar="N", help="tokens of a step (4096)")
    parser.add_argument("--seed", type=seed, default=0)


def main(args: argparse.Namespace) -> int:
    """Returns 0; ends earlier with --steps, and goes on from the state in --out."""
    args.out.mkdir(parents=True, exist_ok=True)
    tokenizer = args.out / "tokenizer.json"
    if not tokenizer.exists():
        chat.train_tokenizer((episode(seed, Mix(share_of_all=0.05)) for seed in range(2000)), tokenizer)
    # One worker with one thread each is quicker than one with many: the matrices are small.
    workers = args.threads if torch.device(args.device).type == "cpu" else 1
    (args.out / "workers").unlink(missing_ok=True)
    if workers > 1:
        torch.multiprocessing.spawn(_work, (args, workers), nprocs=workers)
    else:
        _work(0, args, workers)
    (args.out / "workers").unlink(missing_ok=True)
    print(file=sys.stderr)
    plot(args.out)
    return 0
