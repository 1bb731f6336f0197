"""An integer program as plain C99 for bare metal: a model, its data, and a small runtime."""
