"""An OpenAI-compatible server over the engine: many users' lattices in one batch, none sees another's."""
