"""How fast, how small and how right: measured, beside other libraries where there are any. See README.md."""
