"""Numbers: types, grids and the requantization formulas of the runtimes. No torch, no graphs."""
