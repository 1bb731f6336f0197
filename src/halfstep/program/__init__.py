"""The integer world: the program that a target runs, its specification and its engine."""
