"""Data sets and input pipelines. This package knows nothing of models."""
