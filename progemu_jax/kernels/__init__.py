"""Computations written for the device: attention, convolutions, products, the loss of a large head."""
