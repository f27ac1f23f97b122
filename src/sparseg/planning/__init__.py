"""Plans: settings of a training run that follow from what the training cases measure."""
