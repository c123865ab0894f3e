"""The run of `lace data`: from questions to training lattices with any teacher, stage by stage, resumably."""
