"""Feature canaries at work: reads what processes tell, decides, and tells them what to do."""
