"""Codes of every site for a few samples, in files that firmware can test itself against."""
