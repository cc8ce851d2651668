"""The command line client `atlasctl`: the HTTP API, and for this machine the daemon's program."""
