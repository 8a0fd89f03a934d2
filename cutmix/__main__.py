"""``python -m cutmix``, and what ``torchrun -m cutmix`` starts."""

from cutmix.cli import main

if __name__ == "__main__":
    main()
