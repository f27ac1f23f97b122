"""Attention, block and position tables against what they claim to be."""
