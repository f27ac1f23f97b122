"""Windows: where they lie, what they weigh, and that putting them together loses nothing."""
