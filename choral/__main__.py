"""`python -m choral` and `choral`: the command line, which Ctrl-C ends without a word even while it is imported."""

import os
import sys


def main() -> None:
    """Import the command line and run it."""
    # Its own lines, such as those of failed handshakes, would stand between ours, in whatever form ours are. Read when gRPC is imported.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    try:
        # Here, because it takes a second or two.
        from choral.cli import main as run

        run()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
