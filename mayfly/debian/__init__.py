"""Debian roots out of packages, by mmdebstrap, from whatever mirror this machine uses itself."""
