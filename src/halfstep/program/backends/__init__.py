"""Where the engine's arrays live. The kernels are the same; a backend adds what the array API lacks."""
