"""Who may do what in a registry and as whom, the tokens that say so, and how registries are run."""
