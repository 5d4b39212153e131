"""The host: the small root program that makes, unmakes and lists the VMs of one machine."""
