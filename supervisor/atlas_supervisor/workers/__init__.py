"""The worker processes: how one is launched, kept alive, and stopped."""
