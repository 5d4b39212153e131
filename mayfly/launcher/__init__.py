"""The Woodpecker plugin `buildkit-launcher`."""
