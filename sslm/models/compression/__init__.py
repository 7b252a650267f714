"""Models made smaller: pruning, quantization."""
