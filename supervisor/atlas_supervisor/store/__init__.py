"""What outlives the process: the database and the state file."""
