"""The health of the active worker and the daemon: checked in the background, answered at once."""
