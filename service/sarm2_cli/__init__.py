"""Every `sarm2 ...` command, thin: options in, one call into a room, a readable answer out."""
