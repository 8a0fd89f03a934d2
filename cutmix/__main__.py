"""Entry point of ``python -m cutmix`` and ``torchrun -m cutmix``."""

from cutmix.cli import main

if __name__ == "__main__":
    main()
