"""Slow, loop-written references of published behaviour, independent of the package's own network code."""
