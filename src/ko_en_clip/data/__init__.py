"""Image-text pairs: reading, the embedded set, loading for training."""
