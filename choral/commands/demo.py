"""`choral demo`: a small federation on this machine."""


def demo() -> None:
    """Run."""
