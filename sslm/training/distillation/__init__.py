"""Distillation: a student that learns a teacher's probabilities beside its own objective."""
