"""`python -m razor_fast` is `razor-fast`."""

from .cli import main

if __name__ == "__main__":
    main()
