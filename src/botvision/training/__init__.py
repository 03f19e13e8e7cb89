"""Training: the Lightning module, the schedule, checkpoints and the saved model."""
