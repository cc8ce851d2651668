"""The command line client; it knows the daemon through the HTTP API alone."""
