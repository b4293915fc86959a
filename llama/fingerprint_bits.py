"""How a model's fingerprint lies in its 32 bytes, and how two are compared. What is digested: fingerprint.py.

The first 8 bytes are of what config.json says about the maths. The other 192 bits, little-endian, are shared out among
the layers in order: of a model of 32 layers each has 6, of one of 80 two or three; of more than 192, some have none.
So a node that holds only some layers knows which bits are theirs, and compares those. Two models that were trained
differently and agree in 4 of 32 layers' bits by chance are one pair in 16 million.
"""

FINGERPRINT_BYTES = 32
CONFIG_BYTES = 8
LAYER_BITS = 8 * (FINGERPRINT_BYTES - CONFIG_BYTES)


def same_model(one: bytes, other: bytes, num_layers: int, start: int, end: int) -> bool:
    """Whether two fingerprints agree on the model and on its layers ``start .. end``.

    One that has no layer's bits at all, of a node that holds only embedding and head, is compared by its config alone.
    """
    if len(one) != FINGERPRINT_BYTES or len(other) != FINGERPRINT_BYTES or one[:CONFIG_BYTES] != other[:CONFIG_BYTES]:
        return False
    bits, other_bits = (int.from_bytes(whole[CONFIG_BYTES:], "little") for whole in (one, other))
    if not bits or not other_bits:
        return True
    return not (bits ^ other_bits) & layer_mask(num_layers, start, end)


def layer_mask(num_layers: int, start: int, end: int) -> int:
    """Which of the LAYER_BITS belong to the layers ``start .. end``."""
    first, last = start * LAYER_BITS // num_layers, end * LAYER_BITS // num_layers
    return (1 << last) - (1 << first)
