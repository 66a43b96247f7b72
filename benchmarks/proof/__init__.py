"""The proof: agentic workloads on this project and on the engines people use, side by side. See __main__.py."""
