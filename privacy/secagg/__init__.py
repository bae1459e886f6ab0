"""Secure aggregation by the protocol CSA-1: the coordinator learns the sum of the clients' vectors and nothing else of them."""
