"""The architectures, the normalising first layer, and the checkpoint that a network is kept in."""
