"""What recstream remembers: events, items, users and their binary records (standard library and numpy only)."""
