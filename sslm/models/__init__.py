"""Models are transformers' own; here is what stands around them: construction, loss, sharding."""
