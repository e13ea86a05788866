"""Networks and losses in pure torch: tensors in, tensors out, no slides and no configuration."""
