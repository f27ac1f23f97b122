"""Datasets written to disk, one file per layout; `write.write_dataset` is the entry."""
