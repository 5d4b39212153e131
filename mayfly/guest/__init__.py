"""What runs inside a runner. `agent.py` is copied into the golden image as it is."""
