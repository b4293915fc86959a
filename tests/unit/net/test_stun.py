"""STUN's question and its answer, beside aioice's own."""

import pytest
from aioice import stun as aioice_stun

from hopformer.net.stun import MAX_REQUEST_BYTES, is_request, response


def question(**attributes: str) -> bytes:
    names = {name.upper(): value for name, value in attributes.items()}
    one = aioice_stun.Message(aioice_stun.Method.BINDING, aioice_stun.Class.REQUEST, attributes=names)
    return bytes(one)


@pytest.mark.parametrize(
    ("addr", "seen"),
    [
        (("198.51.100.7", 4711), ("198.51.100.7", 4711)),
        (("::ffff:198.51.100.7", 65535, 0, 0), ("198.51.100.7", 65535)),
        (("2001:db8::1", 1, 0, 0), ("2001:db8::1", 1)),
        (("fe80::1%eth0", 1, 0, 2), ("fe80::1", 1)),
    ],
)
def test_the_answer_says_where_the_question_came_from(addr: tuple, seen: tuple) -> None:
    asked = question()
    told = aioice_stun.parse_message(response(asked, addr))
    assert told.message_class is aioice_stun.Class.RESPONSE and told.transaction_id == asked[8:20]
    assert told.attributes == {"XOR-MAPPED-ADDRESS": seen}


def test_a_question_is_told_from_everything_else() -> None:
    asked = question()
    assert is_request(asked) and is_request(question(software="s" * (MAX_REQUEST_BYTES - 24)))
    assert not is_request(question(software="s" * (MAX_REQUEST_BYTES - 20)))  # a word of four bytes too long
    for other in (b"", asked[:19], asked + b"\0", response(asked, ("10.0.0.1", 1)), b"\0\1\0\0" + bytes(16)):
        assert not is_request(other)
    for first in range(1, 256):
        assert not is_request(bytes((first,)) + asked[1:])
