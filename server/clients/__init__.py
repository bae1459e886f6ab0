"""Clients over gRPC: who may join, who is there, what goes to them and what comes from them."""
