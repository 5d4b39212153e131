"""What outlives a process: leases, builders and what trust remembers in SQLite, metrics in SurrealDB."""
