"""Where connections go: the listening sockets, the steering program, the relay."""
