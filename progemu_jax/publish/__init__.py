"""A run's model on the Hugging Face Hub: the folder that goes there, and its card."""
