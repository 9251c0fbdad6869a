"""Shipway: release machine-learning web services, and take them back when they are not good."""

__version__ = "0.1.0"
