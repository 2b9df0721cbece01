"""Our own TFDS builders, for data that ships in packages or in files that the user has."""
