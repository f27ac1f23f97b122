"""Sliding windows over a volume: grid, importance map, stitching, slab-wise finish. Knows no model."""
