"""Pruning while training: when how much of the weights goes, and that it stays away."""
