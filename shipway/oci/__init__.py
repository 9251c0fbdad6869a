"""OCI images without a daemon: layers made from git and wheels, composed, stored, unpacked."""
