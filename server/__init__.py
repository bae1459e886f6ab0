"""The coordinator: rounds, aggregation, sessions, store and REST API."""
