"""`python -m alignpro_mini`: the command `alignpro`."""

from alignpro_mini.use.command import main

if __name__ == "__main__":
    main()
