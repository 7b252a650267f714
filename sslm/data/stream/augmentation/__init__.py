"""Noise in training text: documents cropped and joined, words misspelt, tokens left out, moved and doubled."""
