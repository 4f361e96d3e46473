"""Selection strategies, labeling cost and budget."""
