"""The engine: decodes many lattices of N threads in lock-step, and picks each lattice's best thread."""
