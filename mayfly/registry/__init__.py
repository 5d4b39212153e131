"""Who may do what in the registry, the tokens that say so, and how distribution is run on S3."""
