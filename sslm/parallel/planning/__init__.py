"""Memory and speed of a run, planned before any process is started."""
