"""`python -m mnemo`, the same as the command `mnemo`."""

from mnemo.cli import main

if __name__ == "__main__":
    main()
