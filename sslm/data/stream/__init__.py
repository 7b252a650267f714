"""Shards of tokens to batches: a pure function of (corpus, seed, objective, position)."""
