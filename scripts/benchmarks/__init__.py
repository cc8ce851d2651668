"""What the daemon costs, measured on this machine with real programs and real processes."""
