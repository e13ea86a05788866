"""Inspect every slide and mask of a data set: findings, near-duplicates, tables and a page."""
