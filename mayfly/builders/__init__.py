"""Builders: what docker clients connect to that have nothing of ours installed.

An unprivileged program of its own. It listens (`door.py`: a unix socket for each builder, one TLS
address for all others), and is a client of the API like any other (`session.py`): a lease for as
long as anything is connected, and SSH through the edge to the runner's BuildKit. What goes through
is HTTP/2 and gRPC; nothing of it is read here.
"""
