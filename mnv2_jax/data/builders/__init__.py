"""TFDS builders of our own: data that ships in packages, or in files that the user has."""
