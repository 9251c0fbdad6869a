"""Load on the service from outside: Locust users, black box over HTTP, no thresholds."""
