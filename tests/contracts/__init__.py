"""What must not change by accident: imports, names, stored keys, sizes, documentation."""
