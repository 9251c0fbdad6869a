"""The command line of this repository: shipway's tasks. Another repository writes the same lines."""

from shipway.tasks import namespace

ns = namespace()
