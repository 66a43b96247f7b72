"""Trees of drafts in the runtime: which ones are fed, what the step's arrays say of them, where accepted KV goes.

The trees of random conversations are compared with a model of them in Python, token for token: the continuations
merged, the counts of what was drawn, the choice. That answers are the same in any mix of sessions, forks and evictions
is test_runtime_random.py's, whose machine draws num_branches too.
"""

import numpy as np
import pytest
from runtime_model import FakeDevice, answer

rt = pytest.importorskip("stateful_kv.runtime")

DRAFTS, MAX_NGRAM, BRANCHES, VISITS = 5, 3, 3, 32
PLACES, GUESS = 5, (0.6, 0.6, 0.0, 0.0, 0.0)
F32 = np.float32


def occurrences(text):
    """Where the text went on after the longest earlier tails, latest first, then after shorter ones down to 2 tokens,
    or 1 where nothing longer is there."""
    places, longest = [], None
    for n in range(min(MAX_NGRAM, len(text)), 0, -1):
        ends = [i + n for i in range(len(text) - n) if text[i : i + n] == text[-n:]]
        longest = longest or (n if ends else None)
        if longest and n >= min(2, longest):
            places += [end for end in reversed(ends) if end not in places]
    return longest, places


class Tree:
    """Nodes [token, parent, children], the root first."""

    def __init__(self, most):
        self.nodes, self.capacity = [[None, 0, []]], 1 + 4 * most

    def add(self, tokens):
        node, before = 0, len(self.nodes)
        for token in tokens:
            found = [c for c in self.nodes[node][2] if self.nodes[c][0] == token]
            if not found:
                if len(self.nodes) == self.capacity:
                    break
                self.nodes.append([token, node, []])
                found = [len(self.nodes) - 1]
                self.nodes[node][2].append(found[0])
            node = found[0]
        return len(self.nodes) > before

    def place(self, node):
        siblings = self.nodes[self.nodes[node][1]][2]
        return 0 if len(siblings) == 1 else min(1 + siblings.index(node), PLACES - 1)

    def chain(self):
        node = 1
        while node < len(self.nodes) and self.nodes[node][1] == node - 1:
            node += 1
        return node - 1


class Record:
    """How often what stood at a place was drawn, by kind of draft."""

    def __init__(self, keep):
        self.keep, self.held, self.judged = F32(keep), {}, {}

    def count(self, at, held):
        self.judged[at] = self.judged.get(at, F32(0)) * self.keep + F32(1)
        self.held[at] = self.held.get(at, F32(0)) * self.keep + F32(held)


class Model:
    """Which drafts a step of one conversation has, from its text and what was drawn."""

    def __init__(self):
        self.own, self.all, self.stop = Record(0.98), Record(0.998), None

    def behind(self, text, place, most):
        """What followed, to the answer's end."""
        tokens = text[place : place + most]
        return tokens[: tokens.index(self.stop) + 1] if self.stop in tokens else tokens

    def probability(self, at):
        others = (float(self.all.held.get(at, 0)) + 8.0 * GUESS[at[1]]) / (float(self.all.judged.get(at, 0)) + 8.0)
        return (float(self.own.held.get(at, 0)) + 4.0 * others) / (float(self.own.judged.get(at, 0)) + 4.0)

    def propose(self, text, most):
        """(drafts, parents); the tree that they were taken from is kept for judge()."""
        self.kind, places = occurrences(text)
        self.tree = tree = Tree(most)
        if not places or most < 1:
            self.tree = None
            return [], []
        tree.add(self.behind(text, places[0], most))
        left = BRANCHES
        for place in places:
            if left > 0:
                left -= tree.add(self.behind(text, place, most))
        chain = list(range(1, min(tree.chain(), most) + 1))
        chosen = self.choose(tree, most)
        if chosen is None:
            chosen = chain
        row = {0: 0, **{node: i + 1 for i, node in enumerate(chosen)}}
        return [tree.nodes[n][0] for n in chosen], [row[tree.nodes[n][1]] for n in chosen]

    def choose(self, tree, most):
        """The most likely nodes, if they are more than a chain."""
        brings = {0: 1.0}
        for node in range(1, len(tree.nodes)):
            brings[node] = brings[tree.nodes[node][1]] * self.probability((self.kind, tree.place(node)))
        worth = [n for n in brings if n > 0 and brings[n] > (0.0 if n <= tree.chain() else 0.02)]
        best = sorted(sorted(worth, key=lambda n: (-brings[n], n))[:most])
        return best if any(n > tree.chain() for n in best) else None

    def judge(self, drawn):
        node = 0
        for token in drawn if self.tree else []:
            following = None
            for child in self.tree.nodes[node][2]:
                held = self.tree.nodes[child][0] == token
                for record in (self.own, self.all):
                    record.count((self.kind, self.tree.place(child)), held)
                following = child if held else following
            if following is None:
                return
            node = following


def play(runtime, session, delta, said, model=None, seconds=lambda rows: 0.0):
    """One turn that says `said`, on a device that accepts what agrees with it, a step of so many rows in `seconds`.
    Returns counts of steps, of those with trees, and of rows; with a model every step's drafts are compared."""
    b, text = runtime.buffers, runtime.tokens(session).tolist() + delta
    request = runtime.submit(session, np.array(delta, np.int32), len(said) + 50, stop_token_ids=said[-1:])
    counts, given = {"steps": 0, "trees": 0, "rows": 0}, 0
    while given < len(said):
        step = runtime.plan()
        rows = int(b["cu_rows"][step.num_seqs])
        drafts = b["draft_tokens"][1:rows].tolist()
        parents = b["parents"][1:rows].tolist() if step.has_trees else list(range(rows - 1))
        if model and step.num_tokens == rows:
            model.stop = said[-1]
            most = min(DRAFTS, len(said) + 50 - given - 1)
            assert (drafts, parents) == model.propose(text, most)
        walked, out = [0], []
        while given + len(out) < len(said):
            out.append(said[given + len(out)])
            found = [i + 1 for i, (d, p) in enumerate(zip(drafts, parents)) if d == out[-1] and p == walked[-1]]
            if not found or given + len(out) == len(said):
                break
            walked.append(found[0])
        row = int(np.diff(b["cu_rows"]).argmax())
        b["out_tokens"][row, : len(out)], b["out_num_tokens"][row], b["out_rows"][row, : len(out)] = (
            out,
            len(out),
            walked,
        )
        if step.has_trees:
            begin = b["slot_mapping"][: step.num_tokens].tolist()
            moves = [(begin[src], begin[dst]) for dst, src in enumerate(walked) if src != dst]
            num = runtime.plan_moves()
            assert list(zip(b["move_src"][:num].tolist(), b["move_dst"][:num].tolist())) == moves
        counts["steps"] += 1
        counts["trees"] += step.has_trees
        counts["rows"] += step.num_tokens
        runtime.commit(seconds(step.num_tokens))
        runtime.check()
        if model and step.num_tokens == rows:
            model.judge(out)
        text += out
        given += len(out)
    counts.update(runtime.stats_of(request))
    return counts


@pytest.mark.parametrize("seed", range(10))
def test_trees_are_those_of_the_model(seed):
    """Random texts that repeat pieces of themselves: every step has the drafts that it should."""
    rng = np.random.default_rng(seed)
    runtime, model = rt.Runtime(400, 4, num_drafts=DRAFTS, max_ngram=MAX_NGRAM, num_branches=BRANCHES), Model()
    session, trees = runtime.open(), 0
    pieces = [rng.integers(0, 9, rng.integers(2, 7)).tolist() for _ in range(4)]

    def text(n):
        return [token for i in rng.integers(0, len(pieces), n) for token in pieces[i]]

    for _ in range(12):
        trees += play(runtime, session, text(2), [*text(6), 9], model)["trees"]
    assert trees > 10


def turns_of(values, count):
    """Calls whose first argument takes the values in turn, the rest following from it."""
    calls = [[1, 2, 3, 10 + v, 30 + v, 50 + v, 70 + v, 4] for v in range(values)]
    return [calls[i % values] for i in range(count)]


def rate(num_branches, calls, **options):
    runtime = rt.Runtime(400, 4, num_drafts=8, num_branches=num_branches, **options)
    session, total = runtime.open(), {}
    for call in calls:
        for name, n in play(runtime, session, [5, 6], call).items():
            total[name] = total.get(name, 0) + n
    return total


@pytest.mark.parametrize("values", [2, 3])
def test_text_that_diverges_in_turns_gains(values):
    """The latest place always goes on otherwise, an older one is right: the chain fails where the tree does not."""
    calls = turns_of(values, 60)
    chain, tree = rate(0, calls), rate(8, calls)
    assert chain["trees"] == chain["drafted_branches"] == 0
    assert tree["steps"] < 0.75 * chain["steps"]
    assert tree["accepted_branches"] > 3 * len(calls)
    assert tree["drafted_branches"] + tree["drafted_spans"] + tree["drafted_relatives"] <= tree["drafted"]


def test_text_that_does_not_diverge_gets_chains_only():
    """The chain's rows, less those behind a stop token."""
    calls = turns_of(1, 60)
    chain, tree = rate(0, calls), rate(8, calls)
    spared = {name: chain.pop(name) - tree.pop(name) for name in ("rows", "drafted", "fed_tokens")}
    assert tree == chain and tree["trees"] == tree["drafted_branches"] == 0
    assert len(set(spared.values())) == 1 and 0 <= spared["rows"] <= 8 * len(calls)


def test_alternatives_that_are_never_right_are_not_fed():
    """Every call is new behind its beginning: other continuations are known, none of them comes again."""
    calls = [[1, 2, 3, 1000 + 3 * i, 1001 + 3 * i, 1002 + 3 * i, 4] for i in range(60)]
    chain, tree = rate(0, calls), rate(8, calls)
    assert tree["trees"] == 0 and tree["steps"] == chain["steps"] and tree["drafted_branches"] == 0


def test_a_text_that_stops_to_diverge_goes_back_to_chains():
    runtime = rt.Runtime(2000, 4, num_drafts=8, num_branches=8)
    session = runtime.open()
    for call in turns_of(2, 40):
        play(runtime, session, [5, 6], call)
    late = [play(runtime, session, [5, 6], [1, 2, 3, 900 + i, 8]) for i in range(400)]
    assert sum(c["trees"] for c in late[:20]) > 0 == sum(c["trees"] for c in late[-20:])


@pytest.mark.parametrize("source", ["spans", "relatives"])
def test_other_sources_are_branches_too(source):
    """What spans or relatives know beside the conversation's own continuation."""
    runtime = rt.Runtime(800, 4, num_drafts=16, num_branches=8, num_relatives=1)
    first, session = runtime.open(), runtime.open()
    calls = turns_of(2, 40)
    if source == "spans":
        runtime.set_spans(session, [np.array([5, 6, *calls[1]], np.int32)])
    play(runtime, first, [7, 7, 7, 7, 5, 6], calls[1])
    accepted = 0
    for _ in range(30):  # its own text never holds the other call, but the other source does
        play(runtime, session, [7, 7, 7, 7, 5, 6], calls[0])
        accepted += play(runtime, session, [7, 7, 7, 7, 5, 6], calls[1])["accepted_branches"]
        runtime.rollback(session, 14)
    assert accepted > 20


def test_adaptive_lengths_leave_out_branches_that_rows_cost_more_than():
    """The same text where rows are nearly free, and where a row costs as much as a step."""
    calls = [turns_of(5, 5)[i] for i in np.random.default_rng(0).integers(0, 5, 200)]
    fed = []
    for slope in (0.001, 0.9):
        runtime = rt.Runtime(800, 4, num_drafts=8, num_branches=8)
        session = runtime.open()
        turns = [play(runtime, session, [5, 6], call, seconds=lambda rows, s=slope: 1 + s * rows) for call in calls]
        fed.append(sum(turn["drafted_branches"] for turn in turns))
    assert fed[0] > 200 > 10 * fed[1]


def test_drafts_of_one_path_are_no_tree():
    """Along another continuation than the first: counted as branches, fed as a chain."""
    runtime = rt.Runtime(400, 4, num_drafts=1, num_branches=2)
    session = runtime.open()
    turns = [play(runtime, session, [5, 6], call) for call in turns_of(3, 30)]
    assert sum(turn["trees"] for turn in turns) == 0 < sum(turn["accepted_branches"] for turn in turns)


def test_a_step_with_a_long_delta_has_no_trees():
    runtime = rt.Runtime(400, 4, num_drafts=8, num_branches=8, max_batch_tokens=256)
    device, expected = FakeDevice(runtime, 400, 4), {}
    first = runtime.open()
    for _ in range(10):
        device.generate(first, [1, 2, 3, 4], 60)
    said = answer(runtime.tokens(first).tolist() + [1, 2], 200)[0]
    expected[runtime.submit(first, [1, 2], 200)] = said
    got, seen = {request: [] for request in expected}, set()
    for turn in range(400):
        if turn % 4 == 2:
            prompt = [turn % 7, 1, 2] * (5 if turn % 8 == 2 else 30)
            request = runtime.submit(runtime.open(), prompt, 1)
            expected[request], got[request] = answer(prompt, 1)[0], []
        info = runtime.plan()
        if info is None:
            break
        longest = int(np.diff(runtime.buffers["cu_seqlens_q"]).max())
        seen.add((info.has_trees, "long" if longest > 64 else "short" if longest > 9 else "none"))
        device.run(info)
        for request, new, _ in device.commit(info):
            got[request] += new
        runtime.check()
    assert got == {request: said[: len(got[request])] for request, said in expected.items()}
    assert (True, "short") in seen and (True, "none") in seen and (False, "long") in seen and (True, "long") not in seen


def tree_step():
    """A runtime with a step with a tree planned whose walk leaves the chain; its device."""
    runtime = rt.Runtime(400, 4, num_drafts=8, num_branches=8)
    device, session = FakeDevice(runtime, 400, 4), runtime.open()
    runtime.submit(session, [1, 2, 3] * 3, 800)
    while True:
        info = runtime.plan()
        device.run(info)
        num = runtime.buffers["out_num_tokens"][0]
        if info.has_trees and (runtime.buffers["out_rows"][0, :num] != np.arange(num)).any():
            return runtime, device, info
        device.commit(info)


def test_moves_come_before_the_commit():
    runtime, device, info = tree_step()
    with pytest.raises(ValueError, match="commit: KV of accepted rows is to be moved"):
        runtime.commit()
    device.commit(info)
    runtime.check()
    with pytest.raises(ValueError, match="plan_moves: no step is planned"):
        runtime.plan_moves()


def test_rows_that_are_no_path_are_refused():
    runtime, device, info = tree_step()
    rows, num = runtime.buffers["out_rows"][0], int(runtime.buffers["out_num_tokens"][0])
    right = rows.copy()
    for at, wrong in ((0, 1), (num - 1, 0), (num - 1, 9), (num - 1, -1)):
        rows[:] = right
        rows[at] = wrong
        with pytest.raises(ValueError, match=r"out_rows\[0\] is no path of the tree"):
            runtime.plan_moves()
    rows[:] = right
    runtime.cancel_step()
    runtime.check()
    info = runtime.plan()
    device.run(info)
    device.commit(info)


def test_kv_that_was_not_moved_is_noticed():
    """That the fake device of these tests and of the random machine would see a wrong compaction."""
    _, device, info = tree_step()
    device.move = lambda num_moves: None
    device.commit(info)
    with pytest.raises(AssertionError, match="holds another prefix's KV"):
        device.step()


def test_a_cancelled_tree_step_changes_nothing():
    runtime, _, info = tree_step()
    arrays = [runtime.buffers[name].copy() for name in ("token_ids", "tree_mask", "parents")]
    runtime.plan_moves()
    runtime.cancel_step()
    runtime.check()
    again = runtime.plan()
    assert again.num_tokens == info.num_tokens and again.has_trees
    for before, name in zip(arrays, ("token_ids", "tree_mask", "parents")):
        used = info.num_tokens
        assert (before[:used] == runtime.buffers[name][:used]).all()


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="num_branches is 17, expected 0 to 16"):
        rt.Runtime(10, num_branches=17)
    with pytest.raises(ValueError, match="num_drafts is 64, expected at most 63 with trees"):
        rt.Runtime(10, num_branches=1, num_drafts=64)
