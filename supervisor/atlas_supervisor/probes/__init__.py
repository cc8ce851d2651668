"""Health probes and smoke tests of a worker."""
