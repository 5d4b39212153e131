"""A command in a fresh runner, with the current directory in it: what `mayfly run` does.

request     options and directory to what is to be done; what is wrong is said here
ignored     which files of the directory travel
image       the command as a step of a build from an image: `flow.build` does the rest
inside      the command on the runner's own system, over SSH
artifacts   files that come back, and what they may not do here
"""
