"""Network architectures, the normalising first layer, and checkpoints of trained networks."""
