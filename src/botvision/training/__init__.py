"""The training loop, which knows no task: trainer, callbacks, optimizer, schedule, run folder."""
