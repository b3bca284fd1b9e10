"""What every training script shares: options, the loop, tasks, checkpoints, metrics, logs and pictures."""
