"""What a round leaves behind, in git, DVC and MLflow, and how it is proven, promoted, made again and cleared away."""
