"""Gates on the compiled kernels that need no GPU: see gate.py."""
