"""Sampling: policies, guidance, grammar, prefill and the decode loop."""
