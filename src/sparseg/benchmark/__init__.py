"""Honest timing: our model, its dense rivals and a plain implementation of it, in one interleaved run."""
