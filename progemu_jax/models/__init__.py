"""Models: parameters and forward passes only. Imports nothing of ours but `sharding`."""
