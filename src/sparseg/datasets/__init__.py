"""Datasets: descriptions, cases, splits, sample data."""
