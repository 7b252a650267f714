"""Pruning: which weights matter least, masks of those that stay, and matrices that are really smaller."""
