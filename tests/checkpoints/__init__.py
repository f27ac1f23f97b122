"""Model folders and foreign checkpoints."""
