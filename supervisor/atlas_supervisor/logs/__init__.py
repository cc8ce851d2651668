"""Reading the daemon's log and its workers' output, from the end on and as they grow."""
