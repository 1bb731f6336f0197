"""Fake quantizers, one published method a file."""
