"""Training: sampling, augmentation, losses, optimiser groups, schedule, loop, resume, logs."""
