"""What a training step will need on a TPU slice, read off the program compiled for it ahead of time."""
