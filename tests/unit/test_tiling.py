"""Tiles cover every pixel; an object on a seam is one object again, and what one tile said twice stays two."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jetfleet_contract.app_config import Tile
from jetfleet_contract.predictions import Detection
from jetfleet_contract.tiling import cuts, merged

tiles = st.builds(Tile, st.integers(32, 700), st.floats(0.0, 0.5))
sides = st.integers(1, 3000)
boxes = st.tuples(st.floats(0, 900), st.floats(0, 900), st.floats(1, 90), st.floats(1, 90)).map(
    lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3]))
answers = st.lists(st.lists(st.builds(Detection, st.sampled_from("ab"), st.floats(0, 1), boxes), max_size=6), max_size=5)


@given(sides, sides, tiles)
def test_every_pixel_lies_in_a_tile_and_every_tile_in_the_frame(width: int, height: int, tile: Tile) -> None:
    found = cuts(width, height, tile)
    assert len(set(found)) == len(found)
    for low, high, length in ((0, 2, width), (1, 3, height)):
        spans = sorted({(cut[low], cut[high]) for cut in found})
        assert spans[0][0] == 0
        assert spans[-1][1] == length, "the last one is flush with the border"
        assert all(end - start == min(tile.size, length) for start, end in spans)
        for (_, end), (start, _) in itertools.pairwise(spans):
            assert end - start >= int(tile.size * tile.overlap), "neighbours share what was asked for"
    xs, ys = {cut[0::2] for cut in found}, {cut[1::2] for cut in found}
    assert len(found) == len(xs) * len(ys), "a full grid"


def test_a_small_frame_is_one_tile() -> None:
    assert cuts(640, 480, Tile(640)) == ((0, 0, 640, 480),)


@given(answers)
def test_merging_loses_no_place_and_invents_none(found: list[list[Detection]]) -> None:
    whole = merged(found)
    pieces = [d for answers in found for d in answers]
    assert len(whole) <= len(pieces)
    assert [d.score for d in whole] == sorted((d.score for d in whole), reverse=True)
    for piece in pieces:
        assert any(_inside(piece.box, d.box) and d.label == piece.label and d.score >= piece.score for d in whole), "in a whole"
    for d in whole:
        assert d.box is not None
        for side, edge in enumerate(d.box):
            assert any(p.box and p.box[side] == edge and p.label == d.label for p in pieces), "no edge that nobody saw"


@given(st.lists(st.builds(Detection, st.sampled_from("ab"), st.floats(0, 1), boxes), max_size=8))
def test_what_one_tile_says_is_left_alone(found: list[Detection]) -> None:
    assert sorted(merged([found, []]), key=repr) == sorted(found, key=repr)


def _inside(inner: tuple[float, ...] | None, outer: tuple[float, ...] | None) -> bool:
    return inner is not None and outer is not None and (
        outer[0] <= inner[0] and outer[1] <= inner[1] and outer[2] >= inner[2] and outer[3] >= inner[3])


def test_an_object_on_a_seam_is_one() -> None:
    left = Detection("car", 0.6, (560.0, 100.0, 640.0, 160.0), (560.0, 100.0, 640.0, 100.0, 640.0, 160.0, 560.0, 160.0))
    right = Detection("car", 0.9, (590.0, 100.0, 700.0, 162.0), (590.0, 100.0, 700.0, 100.0, 700.0, 162.0, 590.0, 162.0))
    (whole,) = merged([[left], [right]])
    assert whole.box == (560.0, 100.0, 700.0, 162.0)
    assert whole.score == 0.9
    assert whole.quad == (560.0, 100.0, 700.0, 100.0, 700.0, 162.0, 560.0, 162.0), "no tile saw its corners"
    other = Detection("bus", 0.5, left.box)
    assert len(merged([[left], [right], [other]])) == 2, "another label is another object"


def test_a_piece_inside_a_whole_keeps_the_wholes_form() -> None:
    tilted = (10.0, 0.0, 100.0, 40.0, 90.0, 60.0, 0.0, 20.0)
    whole = Detection("text", 0.7, (0.0, 0.0, 100.0, 60.0), tilted, outline=(0.0, 0.0, 1.0, 1.0, 2.0, 0.0))
    piece = Detection("text", 0.9, (50.0, 5.0, 100.0, 55.0))
    (found,) = merged([[whole], [piece]])
    assert (found.box, found.quad, found.outline, found.score) == (whole.box, tilted, whole.outline, 0.9)


@pytest.mark.parametrize("overlap", [-0.1, 0.6])
def test_an_overlap_is_at_most_half(overlap: float) -> None:
    import msgspec

    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"size": 640, "overlap": overlap}, Tile)
