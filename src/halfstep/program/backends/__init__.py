"""Where the engine's arrays live: the kernels are the same on each, a backend adds the rest."""
