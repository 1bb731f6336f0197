"""Numbers that learn: calibrators, fake quantizers and regularizers. Torch, but no graphs."""
