"""Rules at their boundaries, and plans of tiny datasets."""
