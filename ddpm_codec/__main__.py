"""`python -m ddpm_codec`: the command line."""

from ddpm_codec.cli import main

if __name__ == "__main__":
    main()
