"""What outlives a process: leases, builders and trust in SQLite, metrics in SurrealDB."""
