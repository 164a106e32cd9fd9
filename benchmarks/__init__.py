"""Benchmarks: `python -m benchmarks.NAME [--json]`. Each starts its own broker and cleans up after itself."""
