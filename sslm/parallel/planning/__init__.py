"""What a run takes of a machine, told before any process is started."""
