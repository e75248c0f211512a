"""One deterministic trainer, with checkpoints."""
