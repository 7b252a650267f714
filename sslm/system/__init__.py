"""What the rest stands on: errors, signals, ranks, the terminal, files, collectives."""
