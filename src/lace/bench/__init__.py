"""What the lattice costs, and how fast the engine is: the measuring behind `lace bench`."""
