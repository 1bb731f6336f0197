"""Codes of weights chosen together, by the error of what the layer computes from them."""
