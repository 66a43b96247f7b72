"""Drafts from other texts than the conversation itself: expected spans, and related conversations of the namespace."""

import numpy as np
import pytest
from runtime_model import FakeDevice

rt = pytest.importorskip("stateful_kv.runtime")

BLOCK, DRAFTS, MAX_NGRAM, RELATIVES = 4, 3, 3, 2


def found(text, tail, shortest, latest):
    """(n, what follows) of the longest tail, of `shortest` tokens or more, that `text` holds with a token behind it."""
    for n in range(min(MAX_NGRAM, len(tail)), shortest - 1, -1):
        starts = [i for i in range(len(text) - n) if text[i : i + n] == tail[-n:]]
        if starts:
            begin = starts[-1 if latest else 0] + n
            return n, text[begin : begin + DRAFTS]
    return 0, []


class Model:
    """Which drafts each step must feed, from the texts alone."""

    def __init__(self, latest):
        self.latest = latest
        self.runtime = rt.Runtime(
            4000, BLOCK, num_drafts=DRAFTS, max_ngram=MAX_NGRAM, latest=latest, num_relatives=RELATIVES
        )
        self.texts, self.spaces, self.parents, self.spans, self.recent = {}, {}, {}, {}, []

    def add(self, session, text, space, parent=None, spans=()):
        self.texts[session], self.spaces[session] = text, space
        self.parents[session], self.spans[session] = parent, spans

    def relatives(self, session):
        text = self.texts[session]
        related = [
            other
            for other in reversed(self.recent)
            if other in self.texts and other != session and self.spaces[other] == self.spaces[session]
            if len(text) >= BLOCK and text[:BLOCK] == self.texts[other][:BLOCK]
        ]
        parent = [p for p in [self.parents[session]] if p in self.texts]
        return (parent + [r for r in related if r not in parent])[: max(RELATIVES, len(parent))]

    def expected(self, session, relatives, most):
        """(source, drafts): the longest tail wins, the earlier source among equals."""
        text = self.texts[session]
        n, drafts = found(text, text, 1, self.latest)
        source = "history"
        tails = [found(part, text, 1, self.latest)[0] for part in self.spans[session]]
        if max(tails, default=0) > n:
            n = max(tails)
            holding = [part for tail, part in zip(tails, self.spans[session]) if tail == n]
            source, drafts = "spans", found(holding[-1 if self.latest else 0], text, n, self.latest)[1]
        for other in relatives:
            more, theirs = found(self.texts[other], text, max(2, n + 1), self.latest)
            if more:
                n, source, drafts = more, "relatives", theirs
        return source, drafts[:most]

    def turn(self, session, delta, answer):
        """Draws `answer`; what is drafted right is accepted. Returns {source: (drafted, accepted)}."""
        runtime, b = self.runtime, self.runtime.buffers
        request = runtime.submit(session, np.array(delta, np.int32), len(answer))
        self.texts[session] += delta
        relatives = self.relatives(session)
        self.recent = [s for s in self.recent if s != session] + [session]
        given, counts = 0, {name: [0, 0] for name in ("history", "spans", "relatives")}
        while given < len(answer):
            step = runtime.plan()
            drafts = b["draft_tokens"][1 : b["cu_rows"][step.num_seqs]].tolist()
            row = next(i for i in range(step.num_seqs) if b["cu_rows"][i + 1] > b["cu_rows"][i])
            source, wanted = "history", []
            if step.num_tokens == step.num_logit_rows:  # it decodes
                source, wanted = self.expected(session, relatives, len(answer) - given - 1)
            assert drafts == wanted
            accepted = 0
            while accepted < len(drafts) and drafts[accepted] == answer[given + accepted]:
                accepted += 1
            new = answer[given : given + accepted + 1]
            b["out_tokens"][row, : len(new)], b["out_num_tokens"][row] = new, len(new)
            runtime.commit()
            self.texts[session] += new
            given += len(new)
            counts[source][0] += len(drafts)
            counts[source][1] += accepted
        stats = runtime.stats_of(request)
        for name in ("spans", "relatives"):
            assert [stats[f"drafted_{name}"], stats[f"accepted_{name}"]] == counts[name]
        for i, name in enumerate(("drafted", "accepted")):
            assert stats[name] == sum(c[i] for c in counts.values())
        runtime.check()
        return counts


@pytest.mark.parametrize("latest", [True, False])
@pytest.mark.parametrize("seed", range(12))
def test_the_source_with_the_longest_tail_wins(seed, latest):
    """Random conversations, forks, namespaces, spans, closings: every step feeds exactly the drafts it should."""
    rng = np.random.default_rng(seed)
    model = Model(latest)
    starts = [[1, 2, 3, 4], [1, 2, 3, 0]]
    totals = {}

    def text(n):
        return rng.integers(0, 6, n).tolist()

    for _ in range(60):
        kind, sessions = rng.integers(0, 10), list(model.texts)
        session = sessions[rng.integers(len(sessions))] if sessions else None
        if session is None or (kind < 2 and len(sessions) < 7):
            space = ["", "b"][rng.integers(2)]
            new = model.runtime.open(space)
            # Spans of different tokens: which of two equal tails is the latest is then no question.
            spans = [] if rng.integers(2) else [[100 + i, *text(3)] for i in range(3)]
            spans = [span + [200 + i] for i, span in enumerate(spans)]
            model.runtime.set_spans(new, spans)
            model.add(new, [], space, spans=spans)
            session = new
        elif kind == 2 and len(sessions) < 7 and model.texts[session]:
            fork = model.runtime.fork(session)
            model.add(fork, list(model.texts[session]), model.spaces[session], session, model.spans[session])
            continue
        elif kind == 3 and len(sessions) > 2:
            model.runtime.close(session)
            del model.texts[session]
            continue
        start = [] if model.texts[session] else starts[rng.integers(2)]
        for name, counts in model.turn(session, start + text(rng.integers(1, 9)), text(rng.integers(1, 12))).items():
            totals[name] = totals.get(name, 0) + counts[0]
    assert all(totals[name] > 0 for name in ("history", "spans", "relatives")), totals


def test_another_namespace_is_never_asked():
    model = Model(True)
    first, other, same = (model.runtime.open(space) for space in ("a", "b", "a"))
    for session, space in ((first, "a"), (other, "b"), (same, "a")):
        model.add(session, [], space)
    prompt, answer = list(range(10, 30)), list(range(40, 60))
    model.turn(first, list(prompt), answer)
    assert model.turn(other, list(prompt), answer)["relatives"] == [0, 0]
    drafted, accepted = model.turn(same, list(prompt), answer)["relatives"]
    assert drafted == accepted > len(answer) // 2


def test_a_fork_drafts_from_what_its_parent_said_since():
    model = Model(True)
    parent = model.runtime.open()
    model.add(parent, [], "")
    model.turn(parent, list(range(10, 30)), [1])
    fork = model.runtime.fork(parent)
    model.add(fork, list(model.texts[parent]), "", parent)
    answer = list(range(40, 60))
    model.turn(parent, [2, 3], answer)
    drafted, accepted = model.turn(fork, [2, 3], answer)["relatives"]
    assert drafted == accepted > len(answer) // 2


def test_a_span_is_drafted_to_its_end_and_no_further():
    model = Model(True)
    session = model.runtime.open()
    spans = [[50, 51, 52, 53], [60, 61]]
    model.runtime.set_spans(session, [np.array(s, np.int32) for s in spans])
    model.add(session, [], "", spans=spans)
    assert model.turn(session, [1, 2], [50, 51, 52, 53, 9, 60, 61, 8])["spans"] == [4, 4]
    model.runtime.set_spans(session, [])
    model.spans[session] = []
    assert model.turn(session, [3], [70, 60, 61])["spans"] == [0, 0]


def test_a_tree_has_nothing_behind_a_stop_token():
    runtime = rt.Runtime(100, BLOCK, num_drafts=8, num_branches=4)
    runtime.submit(runtime.open(), [1, 2, 3, 9, 5, 6, 7, 1], 20, stop_token_ids=[9, 8])
    b, fed = runtime.buffers, []
    for token in (2, 3):
        rows = runtime.plan().num_logit_rows
        fed.append(b["draft_tokens"][:rows].tolist())
        b["out_tokens"][0, 0], b["out_num_tokens"][0] = token, 1
        runtime.commit()
    assert fed == [[1], [2, 3, 9]]


def test_bad_arguments_are_refused():
    runtime = rt.Runtime(10)
    session = runtime.open()
    with pytest.raises(ValueError, match=r"set_spans: spans\[1\] is -1, expected a token"):
        runtime.set_spans(session, [[1, -1]])
    with pytest.raises(ValueError, match="num_relatives is -1, expected 0 to 2147483647"):
        rt.Runtime(10, num_relatives=-1)
    runtime.submit(session, [1], 1)
    with pytest.raises(ValueError, match="set_spans: the session is busy"):
        runtime.set_spans(session, [])
    runtime.close(other := runtime.open())
    with pytest.raises(rt.StaleHandle):
        runtime.set_spans(other, [])


def test_answers_are_the_same_from_any_source():
    """On the fake device every answer can be recomputed from its tokens: relatives change none."""
    runtime = rt.Runtime(200, BLOCK, num_drafts=DRAFTS, num_relatives=RELATIVES)
    device = FakeDevice(runtime, 200, BLOCK)
    prompt, answers = [1, 2, 3, 4, 5, 6, 0, 1], []
    for _ in range(3):
        request, said = runtime.submit(runtime.open(), prompt, 12), []
        while (events := device.step()) is not None:
            said += [token for _, tokens, _ in events for token in tokens]
        answers.append((said, runtime.stats_of(request)))
    assert answers[0][0] == answers[1][0] == answers[2][0]
    assert answers[0][1]["accepted_relatives"] == 0 < answers[1][1]["accepted_relatives"]
