"""Agentic workloads: token-exact, from a seed. `python -m benchmarks.workloads` writes them as JSON."""
