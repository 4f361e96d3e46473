"""What the training stage measures and prepares before and between its iterations."""
