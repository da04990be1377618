"""Training: one short loop, and a small file for each stage."""
