"""Training data: records of lattices, the teachers that write them, and the way into tensors."""
