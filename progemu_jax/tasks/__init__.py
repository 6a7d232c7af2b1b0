"""Tasks: init, loss and metrics of one thing that trains."""
