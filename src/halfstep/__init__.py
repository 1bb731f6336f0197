"""Halfstep: quantize a PyTorch model for the hardware that will run it, and prove it."""
