"""Training on one device, readable from top to bottom."""
