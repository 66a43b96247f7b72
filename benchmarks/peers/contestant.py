"""One contestant in a process of its own: takes all turns of one workload and writes what each of them cost.

    python with_ENGINE.py CELL.json OUT.json

Only the standard library is imported here: every engine has an environment of its own. CELL.json holds `workload` (a
path, see benchmarks/workloads), `checkpoint`, `dtype`, `threads`, `clock` ("wall", or "cpu" for the process's
processor time, which a busy machine does not lengthen), `variant` (which of the adapter's ways) and, for contestants
too slow to take every turn, `every` (turns taken) with `script` (the answers of the turns left out). Prints one line
per step for a progress bar.
"""

import argparse
import json
import os
import pathlib
import resource
import time
from dataclasses import dataclass

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


@dataclass
class Turn:
    """agent's whole conversation with this turn's delta, whose length is num_new; fork_of: begins as that agent's."""

    agent: int
    context: list[int]
    num_new: int
    answer: int
    fork_of: int | None = None


@dataclass
class Answer:
    """Seconds count from the moment the step's turns were there. computed: prompt tokens that entered the model;
    drafted, accepted: speculated tokens; None: the engine does not say."""

    tokens: list[int]
    ttft_s: float
    turn_s: float
    computed: int | None
    drafted: int | None = 0
    accepted: int | None = 0


class Contestant:
    """What an adapter defines. `version` names engine and version. Engines that serve one request after the other
    define turn(); those that batch define take(). Times are read from clock()."""

    version = ""
    clock = staticmethod(time.perf_counter)

    def __init__(self, cell: dict):
        raise NotImplementedError

    def start(self) -> None:
        """Forgets everything: the next turn is the first one."""
        raise NotImplementedError

    def turn(self, turn: Turn, first_token) -> Answer:
        """Calls first_token() when the first token of the answer is there; the seconds of its result are not read."""
        raise NotImplementedError

    def counts(self) -> dict[str, int]:
        """What the engine counted since start(), beyond what answers say."""
        return {}

    def take(self, turns: list[Turn]) -> list[Answer]:
        begin, answers = self.clock(), []
        for turn in turns:
            first: list[float] = []
            answer = self.turn(turn, lambda first=first: first.append(self.clock()))
            answer.turn_s, answer.ttft_s = self.clock() - begin, first[0] - begin
            answers.append(answer)
        return answers


def limit_threads(cell: dict) -> None:
    """Before an engine is imported: its libraries read these once. Idle threads sleep: contestants take turns."""
    os.environ["OMP_NUM_THREADS"] = str(cell["threads"])
    os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error", TOKENIZERS_PARALLELISM="false")


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


class Run:
    """All turns of a workload on one contestant."""

    def __init__(self, contestant: Contestant, cell: dict, workload: dict):
        self.contestant, self.cell = contestant, cell
        self.steps = workload["steps"][: cell.get("steps") or None]
        self.conversations: dict[int, list[int]] = {}
        self.rows: list[dict] = []
        self.num_seen = 0

    def go(self) -> list[dict]:
        for i, step in enumerate(self.steps):
            self._step(i, [self._turn(t) for t in step])
            print(f"step {i + 1} of {len(self.steps)}", flush=True)
        return self.rows

    def _turn(self, t: dict) -> Turn:
        begin = self.conversations[t["fork_of"]] if t["fork_of"] is not None else self.conversations.get(t["agent"], [])
        return Turn(t["agent"], begin + t["delta"], len(t["delta"]), t["answer"], t["fork_of"])

    def _step(self, index: int, turns: list[Turn]) -> None:
        every, script = self.cell.get("every", 1), self.cell.get("script")
        if script and index % every and index + 1 < len(self.steps):
            answers = [None] * len(turns)
            tokens = [script[self.num_seen + i] for i in range(len(turns))]
        else:
            cpu = time.process_time()
            answers = self.contestant.take(turns)
            cpu = time.process_time() - cpu
            tokens = [answer.tokens for answer in answers]
        self.num_seen += len(turns)
        for turn, answer, given in zip(turns, answers, tokens):
            assert len(given) == turn.answer, f"{len(given)} tokens came, {turn.answer} were asked for"
            self.conversations[turn.agent] = turn.context + given
            if answer is not None:
                row = {"step": index, "agent": turn.agent, "context": len(turn.context), "delta": turn.num_new}
                self.rows.append({**row, **vars(answer), "step_cpu_s": cpu})


def serve(make) -> None:
    """The main program of an adapter; make(cell) gives the contestant."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("cell", "out"):
        parser.add_argument(name, metavar=f"{name.upper()}.json", type=pathlib.Path)
    args = parser.parse_args()
    cell_path, out = args.cell, args.out
    cell = json.loads(cell_path.read_text())
    limit_threads(cell)
    workload = json.loads(pathlib.Path(cell["workload"]).read_text())
    cell.update(agents=workload["agents"], max_context=workload["max_context"], pool_tokens=workload["pool_tokens"])
    cell.update(total=workload["total"])
    begin = time.perf_counter()
    contestant = make(cell)
    contestant.clock = CLOCKS[cell["clock"]]
    contestant.start()
    first = workload["steps"][0][0]
    contestant.take([Turn(0, first["delta"][:64], 64, 8)])  # kernels chosen, weights touched
    contestant.start()
    ready = dict(load_s=time.perf_counter() - begin, ready_mb=peak_mb(), load_average=os.getloadavg()[0])
    begin = time.perf_counter()
    rows = Run(contestant, cell, workload).go()
    facts = dict(version=contestant.version, wall_s=time.perf_counter() - begin, peak_mb=peak_mb(), **ready)
    facts.update(counts=contestant.counts())
    settings = {k: v for k, v in cell.items() if k not in ("script", "workload", "checkpoint")}
    out.write_text(json.dumps(dict(cell=settings, **facts, rows=rows)) + "\n")
