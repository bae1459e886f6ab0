"""The REST API in processes of its own beside a coordinator, and what the two say to each other."""
