"""Where examples come from. This package knows no model."""
