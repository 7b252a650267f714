"""Optimizers, one file an algorithm; `build_optimizer` makes the one that is asked for."""
