"""The demo: a federation of real processes on this machine, and three numbers that say why one federates."""
