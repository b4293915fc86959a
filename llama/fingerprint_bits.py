"""How a model's fingerprint lies in its 32 bytes, and how two are compared. What is digested: fingerprint.py.

The first 8 bytes are of what config.json says about the maths. The other 192 bits, little-endian, are shared out among
the layers in order: of a model of 32 layers each has 6, of one of 80 two or three. A layer's bits are 0 where it is not
there, else 1 and more. So nodes that hold different parts of a model compare the layers that both have.

Two models that were trained differently have the same 6 bits in a layer with a chance of 1 in 63, and so in a span of 4
layers in 16 million. A single bit says no more than that the layer is there: models of up to 96 layers have none such.
"""

FINGERPRINT_BYTES = 32
CONFIG_BYTES = 8
LAYER_BITS = 8 * (FINGERPRINT_BYTES - CONFIG_BYTES)


def same_model(one: bytes, other: bytes, num_layers: int, start: int, end: int) -> bool:
    """Whether two fingerprints agree on the config, and on those of the layers ``start .. end`` that both have."""
    if len(one) != FINGERPRINT_BYTES or len(other) != FINGERPRINT_BYTES or one[:CONFIG_BYTES] != other[:CONFIG_BYTES]:
        return False
    for index in range(start, end):
        bits, other_bits = (_bits_of(whole, num_layers, index) for whole in (one, other))
        if bits and other_bits and bits != other_bits:
            return False
    return True


def layer_bits(digest: bytes, num_layers: int, index: int) -> int:
    """What a layer's digest adds to the 192 bits."""
    first, last = _place(num_layers, index)
    most = (1 << (last - first)) - 1
    return (1 + int.from_bytes(digest, "little") % most) << first if most else 0


def _bits_of(fingerprint: bytes, num_layers: int, index: int) -> int:
    first, last = _place(num_layers, index)
    return int.from_bytes(fingerprint[CONFIG_BYTES:], "little") >> first & ((1 << (last - first)) - 1)


def _place(num_layers: int, index: int) -> tuple[int, int]:
    """The first bit of a layer, and the one behind its last."""
    return index * LAYER_BITS // num_layers, (index + 1) * LAYER_BITS // num_layers
