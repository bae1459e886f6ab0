"""Federations without a network: engines that stand in for the clients of a run."""
