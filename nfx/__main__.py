"""`python -m nfx` is the command `nfx`."""

from nfx.cli import main

if __name__ == "__main__":
    main()
