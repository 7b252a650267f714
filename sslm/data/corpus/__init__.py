"""Documents to shards of tokens on the disk."""
