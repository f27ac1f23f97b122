"""Training: crops, augmentation, schedule, log, and runs that can be stopped anywhere."""
