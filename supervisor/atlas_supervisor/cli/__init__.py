"""The command line client `atlasctl`; it uses the HTTP API alone."""
