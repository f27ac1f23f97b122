"""Orientation, foreground crop, resampling and intensity: applied, recorded, undone."""
