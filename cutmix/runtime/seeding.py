"""Independent random streams from one seed."""

import hashlib


def derive_seed(*parts: int | str) -> int:
    """Return a 63-bit seed that depends on every part of the stream's name and on nothing else.

    Neighbouring inputs give unrelated streams, so ``derive_seed(seed, "order", epoch)`` needs no state: an epoch, a
    step or a sample can be drawn again at any time, in any process. Torch's generator on the CPU takes the low 32 bits.
    """
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
