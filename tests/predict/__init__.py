"""Tests of windows to label files."""
