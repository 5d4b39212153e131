"""`mayfly install` and `uninstall`."""
