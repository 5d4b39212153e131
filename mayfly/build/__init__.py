"""Everything the client does for one build once it has a runner: arguments, SSH, buildx, log."""
