"""Where a run trains: launchers, strategies, and what they make of a model."""
