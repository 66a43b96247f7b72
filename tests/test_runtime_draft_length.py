"""Draft lengths chosen from measured cost and acceptance, on a simulated device: never much worse than none or all."""

import pytest
from draft_simulation import Simulation

NUM_DRAFTS = 8


def seconds(slope, flat_until=0):
    """A step's time: each row costs `slope` of a step, those up to flat_until nothing."""
    return lambda rows: 1 + slope * max(0, rows - flat_until)


def best(num_seqs, cost, p):
    """Tokens per second of the better of no drafts and all of them."""
    tokens = sum(p**i for i in range(NUM_DRAFTS + 1))
    return max(num_seqs / cost(num_seqs), num_seqs * tokens / cost(num_seqs * (NUM_DRAFTS + 1)))


@pytest.mark.parametrize("p", [0.0, 0.3, 0.6, 0.9])
@pytest.mark.parametrize("slope", [0.005, 0.05])
@pytest.mark.parametrize("num_seqs, flat_until", [(1, 0), (1, 64), (16, 0), (16, 64)])
def test_never_much_worse_than_none_or_all(num_seqs, flat_until, slope, p):
    cost = seconds(slope, flat_until)
    simulation = Simulation(num_seqs, NUM_DRAFTS, cost, lambda i: p)
    simulation.tokens_per_second(30, True)  # what rows cost is learnt
    rate = simulation.tokens_per_second(1200 if num_seqs == 1 else 300, True)
    noise = 0.04 if 0 < p < 1 else 0  # of the simulated draws
    assert rate >= (0.97 - noise) * best(num_seqs, cost, p)


def test_each_sequence_gets_what_its_own_text_earns():
    """Half of the conversations repeat themselves, half never do: better than treating them alike."""
    cost = seconds(0.02)
    simulation = Simulation(8, NUM_DRAFTS, cost, lambda i: 0.9 if i % 2 else 0.0)
    simulation.tokens_per_second(100, True)
    rate = simulation.tokens_per_second(300, True)
    stats = [simulation.runtime.stats_of(request) for request in simulation.sequence]
    drafted = [s["drafted"] for s in stats]
    assert max(drafted[::2]) * 5 < min(drafted[1::2])
    tokens = 4 + 4 * sum(0.9**i for i in range(NUM_DRAFTS + 1))
    assert rate > 1.1 * max(8 / cost(8), tokens / cost(8 * (NUM_DRAFTS + 1)))


def test_a_text_that_begins_to_repeat_is_noticed():
    chance = {"p": 0.0}
    simulation = Simulation(2, NUM_DRAFTS, seconds(0.02), lambda i: chance["p"])
    before = simulation.tokens_per_second(300, True)
    chance["p"] = 0.95
    simulation.tokens_per_second(300, True)
    assert simulation.tokens_per_second(100, True) > 3 * before


def test_what_a_row_costs_is_found():
    simulation = Simulation(4, NUM_DRAFTS, seconds(0.03), lambda i: 0.5)
    assert simulation.runtime.step_cost == (0.0, 0.0)
    simulation.tokens_per_second(100, True)
    base, slope = simulation.runtime.step_cost
    assert abs(base - 1) < 0.01 and abs(slope - 0.03) < 0.001


def test_without_measured_times_drafts_are_as_long_as_they_come():
    simulation = Simulation(4, NUM_DRAFTS, seconds(1.0), lambda i: 0.0)
    simulation.tokens_per_second(50, False)
    # Matches near the end of the text are followed by less than NUM_DRAFTS tokens.
    assert all(simulation.runtime.stats_of(r)["drafted"] > 40 * NUM_DRAFTS for r in simulation.sequence)
