"""Training: supervised fine-tuning of whole lattices, and the recipe of the embedded model."""
