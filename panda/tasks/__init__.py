"""What is trained and how it is scored: Lightning modules, metrics and the choice of threshold."""
