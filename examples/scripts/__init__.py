"""Four scripts to read from top to bottom, and to begin one's own with. They use nothing else of `examples`."""
