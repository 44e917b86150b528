"""Training: state, steps, loop, checkpoints, sharding; phases put them together."""
