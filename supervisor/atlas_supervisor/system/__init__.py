"""What the daemon reads of the operating system: processes, sockets, locks, clocks, files."""
