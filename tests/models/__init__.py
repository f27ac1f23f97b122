"""The networks: what they compute, what they refuse, and values that must not drift."""
