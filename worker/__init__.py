"""What an application imports to be a good worker."""
