"""The command line where some packages are not installed: PACKAGES, joined by commas, then the arguments of `choral`."""

import sys

if __name__ == "__main__":
    # Python's own mark for what must not be imported.
    sys.modules.update(dict.fromkeys(sys.argv.pop(1).split(","), None))  # type: ignore[arg-type]

    from choral.cli import main

    main()
