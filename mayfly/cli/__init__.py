"""The command line: thin over flow, client and the programs; `main.py` is where it starts."""
