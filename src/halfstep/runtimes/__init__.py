"""Artifacts opened in the runtimes that will run them."""
