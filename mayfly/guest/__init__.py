"""What runs inside a runner: this folder is copied into the golden image as it is."""
