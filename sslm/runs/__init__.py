"""What a run leaves on the disk, and what is read of it later."""
