"""The edge client: session, policy, local data, training."""
