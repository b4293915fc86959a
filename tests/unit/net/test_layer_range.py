"""Half-open ranges of layers."""

import pytest

from hopformer.errors import BlocksMapError
from hopformer.net.layer_range import LayerRange, gaps, listed, merged


def test_a_range_is_read_and_written() -> None:
    assert str(LayerRange.parse("4:8")) == "4:8" and len(LayerRange.parse("4:8")) == 4


@pytest.mark.parametrize(
    "text", ["", "4", "4:", ":8", "8:4", "4:4", "-1:3", "4:8:9", " 4:8", "4 :8", "٤:٨", "0:9999999"]
)
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(BlocksMapError, match="no range of layers; write 4:8"):
        LayerRange.parse(text)


def test_what_two_ranges_have_in_common() -> None:
    assert LayerRange(0, 5).common(LayerRange(3, 8)) == LayerRange(3, 5)
    assert not LayerRange(0, 3).common(LayerRange(3, 8)) and not LayerRange(5, 8).common(LayerRange(0, 3))
    assert LayerRange(3, 5) in LayerRange(3, 8) and LayerRange(2, 5) not in LayerRange(3, 8)


def test_ranges_that_touch_become_one() -> None:
    ranges = [LayerRange(4, 6), LayerRange(0, 2), LayerRange(2, 3), LayerRange(5, 5), LayerRange(5, 9)]
    assert merged(ranges) == [LayerRange(0, 3), LayerRange(4, 9)]


@pytest.mark.parametrize(
    ("ranges", "holes"),
    [
        ([], ["0:8"]),
        (["0:8"], []),
        (["2:4", "6:7"], ["0:2", "4:6", "7:8"]),
        (["0:3", "2:12"], []),
        (["9:12"], ["0:8"]),
    ],
)
def test_the_gaps_between_ranges(ranges: list[str], holes: list[str]) -> None:
    assert [str(hole) for hole in gaps(map(LayerRange.parse, ranges), LayerRange(0, 8))] == holes


def test_ranges_are_listed_for_people() -> None:
    assert listed([LayerRange(0, 4)]) == "0:4"
    assert listed([LayerRange(0, 4), LayerRange(5, 6), LayerRange(7, 8)]) == "0:4, 5:6 and 7:8"
