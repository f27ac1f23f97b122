"""Dice, HD95 and NSD with their rules for empty structures."""
