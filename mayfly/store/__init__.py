"""What outlives a process: leases in SQLite."""
