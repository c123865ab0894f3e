"""The lattice: gated attention from each thread of a prompt to what the other threads have written."""
