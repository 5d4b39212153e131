"""What the unit mayfly-agent starts."""

from mayfly.guest.agent import main

main()
