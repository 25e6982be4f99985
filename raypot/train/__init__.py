"""Training: the pure step, optimizers, the loop, checkpoints and workers."""
