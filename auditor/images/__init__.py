"""The clean set: a user's images, with or without labels, at the model's input size."""
