"""The main job: tool-calling agents on one resident KV cache, and the same work recomputed as the baseline.

Reading order: main.py (the command), driver.py (rounds, calls, forks), report.py (the figures); tools.py with desk.py
and workspace.py (what the agents work on), calls.py (the strict parser), text.py (tokens), transcripts/. The embedded
model, the world it works on and its training are agents/.
"""
