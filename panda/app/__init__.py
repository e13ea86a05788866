"""Turn a configuration into a run. Only this package handles configuration objects."""
