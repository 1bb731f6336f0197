"""Methods that change a trained model so that it survives quantization; no training loop.

Those that keep the float function take a ``Graph`` and give a new one with a report; those that
fit weights and biases to the grids take a calibrated ``QuantizedModel``, change it in place and
give a report.
"""
