"""Meshes, hosts and what a device can do."""
