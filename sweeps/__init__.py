"""Which runs, why those, and getting them done."""
