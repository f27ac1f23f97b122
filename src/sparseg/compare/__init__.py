"""Rivals trained under one budget on the same crops and folds: quality beside speed, with spread."""
