"""What people see of a running daemon."""
