"""Pictures of images with labels. Reads what `predict` wrote."""
