"""What the benchmarks share: a broker for the run, its topics and events, pinned processes, counting, the report."""
