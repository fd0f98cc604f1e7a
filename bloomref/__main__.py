"""`python -m bloomref` is the command `bloomref`."""

from bloomref.cli import main

if __name__ == "__main__":
    main()
