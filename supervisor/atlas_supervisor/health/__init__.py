"""How well the active instance and the daemon are: looked at in the background, told at once."""
