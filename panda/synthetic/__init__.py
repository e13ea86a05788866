"""Draw PANDA-like slides with known truth: slides, label masks, the table and the true areas."""
