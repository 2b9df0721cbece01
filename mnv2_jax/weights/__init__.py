"""Convert trained weights of other code bases to our parameter tree and back."""
