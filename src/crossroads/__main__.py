"""``python -m crossroads`` is the command line."""

from crossroads.cli import main

if __name__ == "__main__":
    main()
