"""`python -m choral`: the command line."""

from choral.cli import main

if __name__ == "__main__":
    main()
