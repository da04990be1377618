"""Evaluation: zero-shot classification and retrieval, in Korean and English."""
