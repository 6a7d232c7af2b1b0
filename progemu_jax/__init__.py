"""ProgEmu in JAX: counterfactual chest X-rays and the text that explains them. For research only."""
