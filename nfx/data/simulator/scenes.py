"""Rendered scenes: the world that the simulated subjects see.

A scene is one object with parts and texture, in one colour, moving in one direction over one textured background.
Object x colour x background are the 128 classes of a frame, object x motion x background the 128 classes of a video,
and :func:`caption` names all four. Coordinates are pixels of a 64-pixel frame, y pointing down; times are seconds.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw

OBJECTS = ("person", "cat", "turtle", "fish", "airplane", "burger", "car", "mountain")
COLOURS = ("red", "green", "blue", "yellow")
BACKGROUNDS = ("grass", "water", "brick", "snow")
MOTIONS = ("left", "right", "up", "down")

FRAME_CLASSES = tuple(f"{c} {o} on {b}" for o in OBJECTS for c in COLOURS for b in BACKGROUNDS)
VIDEO_CLASSES = tuple(f"{o} moving {m} on {b}" for o in OBJECTS for m in MOTIONS for b in BACKGROUNDS)

FRAME = 64  # pixels of the frame in whose coordinates a scene is described
SPEED = 4.0  # pixels a second
DIRECTION = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
_PAINT = {"red": (205, 45, 40), "green": (45, 165, 60), "blue": (45, 80, 215), "yellow": (235, 195, 40)}
_OUTLINE = (25, 22, 30)
_WHITE = (245, 245, 240)
_SUPERSAMPLING = 4


class Scene(NamedTuple):
    """One object on one background. Attributes index the module's tuples."""

    object: int
    colour: int
    background: int
    motion: int
    x: float  # centre of the object at time 0, pixels
    y: float
    scale: int  # width of the object's square, pixels
    texture_seed: int  # which part of the texture, its brightness, and the way the object faces


def random_scene(rng: np.random.Generator, duration: float = 2.0, **fixed: float) -> Scene:
    """Draw a scene whose object is near the centre of the frame halfway through `duration` seconds.

    Attributes given by name (`object=3`) are kept, the others are drawn uniformly.
    """
    unknown = set(fixed) - set(Scene._fields)
    if unknown:
        raise ValueError(f"a Scene has the fields {Scene._fields}; got {sorted(unknown)}")
    drawn: dict[str, Any] = {
        "object": int(rng.integers(len(OBJECTS))),
        "colour": int(rng.integers(len(COLOURS))),
        "background": int(rng.integers(len(BACKGROUNDS))),
        "motion": int(rng.integers(len(MOTIONS))),
    } | fixed
    dx, dy = DIRECTION[MOTIONS[drawn["motion"]]]
    # Along its path the object may be anywhere that an 8-second scene can take it; across the path it jitters.
    along = max(0.0, 16 - SPEED * duration / 2)
    start = -SPEED * duration / 2 + rng.uniform(-along, along)
    across = rng.uniform(-6, 6)
    drawn |= {
        "x": fixed.get("x", FRAME / 2 + dx * start + (dx == 0) * across),
        "y": fixed.get("y", FRAME / 2 + dy * start + (dy == 0) * across),
        "scale": fixed.get("scale", int(rng.integers(36, 44))),
        "texture_seed": fixed.get("texture_seed", int(rng.integers(2**31))),
    }
    return Scene(**drawn)


def caption(scene: Scene) -> str:
    """The sentence that describes a scene, such as 'a red cat moving left on grass'."""
    motion = MOTIONS[scene.motion]
    return f"a {COLOURS[scene.colour]} {OBJECTS[scene.object]} moving {motion} on {BACKGROUNDS[scene.background]}"


def frame_class(scene: Scene) -> int:
    """Index into FRAME_CLASSES: object x colour x background."""
    return (scene.object * len(COLOURS) + scene.colour) * len(BACKGROUNDS) + scene.background


def video_class(scene: Scene) -> int:
    """Index into VIDEO_CLASSES: object x motion x background."""
    return (scene.object * len(MOTIONS) + scene.motion) * len(BACKGROUNDS) + scene.background


def centre(scene: Scene, times: np.ndarray) -> np.ndarray:
    """Centre of the object at `times` (seconds), (times, 2) in pixels x, y of the 64-pixel frame."""
    direction = np.array(DIRECTION[MOTIONS[scene.motion]])
    return np.array([scene.x, scene.y]) + SPEED * np.asarray(times, float)[:, None] * direction


def render(scene: Scene, times: np.ndarray, size: int = FRAME) -> np.ndarray:
    """Render a scene at `times` (seconds): uint8 (times, size, size, 3)."""
    background = _background(scene, size)
    sprite = _sprite(*_sprite_key(scene, size))
    frames = np.repeat(background[None], len(times), axis=0)
    for frame, (x, y) in zip(frames, centre(scene, times) * size / FRAME, strict=True):
        _composite(frame, sprite, x, y)
    return (frames + 0.5).astype(np.uint8)


def object_mask(scene: Scene, times: np.ndarray, size: int = FRAME) -> np.ndarray:
    """Where the object (without its trail) is: bool (times, size, size)."""
    key = _sprite_key(scene, size)
    alpha = _drawn(*key[:2], key[3], key[4])[..., 3:]
    sprite = np.concatenate([np.ones_like(alpha).repeat(3, -1) * alpha, alpha], -1)
    masks = np.zeros((len(times), size, size, 3), np.float32)
    for frame, (x, y) in zip(masks, centre(scene, times) * size / FRAME, strict=True):
        _composite(frame, sprite, x, y)
    return masks[..., 0] > 0.5


def _sprite_key(scene: Scene, size: int) -> tuple[str, str, str, int, bool]:
    motion = MOTIONS[scene.motion]
    faces_left = motion == "left" or (motion in ("up", "down") and scene.texture_seed % 2 == 1)
    return OBJECTS[scene.object], COLOURS[scene.colour], motion, round(scene.scale * size / FRAME), faces_left


def _composite(frame: np.ndarray, sprite: np.ndarray, x: float, y: float) -> None:
    """Lay a premultiplied RGBA sprite, centred at (x, y), over a frame in place; what sticks out is cut off."""
    half, size = sprite.shape[0] // 2, frame.shape[0]
    left, top = round(x) - half, round(y) - half
    x0, y0 = max(left, 0), max(top, 0)
    x1, y1 = min(left + sprite.shape[1], size), min(top + sprite.shape[0], size)
    if x0 >= x1 or y0 >= y1:
        return
    part = sprite[y0 - top : y1 - top, x0 - left : x1 - left]
    frame[y0:y1, x0:x1] *= 1 - part[..., 3:]
    frame[y0:y1, x0:x1] += part[..., :3]


@lru_cache(maxsize=2048)
def _sprite(name: str, colour: str, motion: str, pixels: int, faces_left: bool) -> np.ndarray:
    """Premultiplied RGBA of an object with the blur that its motion leaves behind it, as a film camera records it."""
    drawn = _drawn(name, colour, pixels, faces_left)
    step = max(1, round(pixels * 0.1))
    margin = 3 * step
    out = np.zeros((pixels + 2 * margin, pixels + 2 * margin, 4), np.float32)
    dx, dy = DIRECTION[motion]
    for ghost, weight in ((3, 0.2), (2, 0.35), (1, 0.5), (0, 1.0)):
        top, left = margin - dy * ghost * step, margin - dx * ghost * step
        window = out[top : top + pixels, left : left + pixels]
        window *= 1 - weight * drawn[..., 3:]
        window += weight * drawn
    return out


@lru_cache(maxsize=2048)
def _drawn(name: str, colour: str, pixels: int, faces_left: bool) -> np.ndarray:
    """Premultiplied RGBA of an object: colours 0-255, alpha 0-1, (pixels, pixels, 4)."""
    big = pixels * _SUPERSAMPLING
    image = Image.new("RGBA", (big, big), (0, 0, 0, 0))
    _DRAW[name](_Pen(ImageDraw.Draw(image), big), _PAINT[colour])
    rgba = np.asarray(image, np.float32)
    if faces_left:
        rgba = rgba[:, ::-1]
    rgba = np.concatenate([rgba[..., :3] * (rgba[..., 3:] / 255), rgba[..., 3:] / 255], -1)
    return rgba.reshape(pixels, _SUPERSAMPLING, pixels, _SUPERSAMPLING, 4).mean((1, 3))


class _Pen:
    """PIL's drawing calls in coordinates from 0 to 100."""

    def __init__(self, draw: ImageDraw.ImageDraw, size: int) -> None:
        self.draw, self.unit = draw, size / 100

    def _scaled(self, points: list[tuple[float, float]]) -> list[tuple[float, float]]:
        return [(x * self.unit, y * self.unit) for x, y in points]

    def ellipse(self, x0: float, y0: float, x1: float, y1: float, fill: tuple, line: float = 2) -> None:
        self.draw.ellipse(self._scaled([(x0, y0), (x1, y1)]), fill, _OUTLINE, max(1, round(line * self.unit)))

    def polygon(self, points: list[tuple[float, float]], fill: tuple, line: float = 2) -> None:
        self.draw.polygon(self._scaled(points), fill)
        self.line([*points, points[0]], _OUTLINE, line)

    def line(self, points: list[tuple[float, float]], fill: tuple, width: float) -> None:
        self.draw.line(self._scaled(points), fill, max(1, round(width * self.unit)), joint="curve")


def _shade(paint: tuple[int, int, int], factor: float) -> tuple[int, int, int]:
    """Darker for a factor below 1, towards white above."""
    if factor <= 1:
        red, green, blue = (round(c * factor) for c in paint)
    else:
        red, green, blue = (round(c + (255 - c) * (factor - 1)) for c in paint)
    return red, green, blue


def _person(pen: _Pen, paint: tuple[int, int, int]) -> None:
    skin = (230, 180, 145)
    for hip, foot in ((44, 30), (56, 72)):
        pen.line([(hip, 62), (foot, 98)], _OUTLINE, 13)
        pen.line([(hip, 62), (foot, 97)], _shade(paint, 0.5), 9)
    for shoulder, hand in (((36, 36), (16, 58)), ((64, 36), (86, 50))):
        pen.line([shoulder, hand], _OUTLINE, 11)
        pen.line([shoulder, hand], skin, 7)
    pen.polygon([(34, 30), (66, 30), (64, 68), (36, 68)], paint)
    pen.line([(36, 50), (64, 50)], _WHITE, 5)
    pen.ellipse(37, 2, 63, 29, skin)
    pen.polygon([(36, 13), (40, 2), (60, 2), (64, 13)], (70, 45, 25), 1)


def _cat(pen: _Pen, paint: tuple[int, int, int]) -> None:
    dark = _shade(paint, 0.5)
    pen.line([(16, 55), (6, 38), (12, 20)], _OUTLINE, 10)
    pen.line([(16, 55), (6, 38), (12, 21)], paint, 6)
    for leg in (22, 34, 54, 64):
        pen.polygon([(leg, 66), (leg + 8, 66), (leg + 8, 95), (leg, 95)], paint)
    pen.ellipse(12, 42, 76, 78, paint)
    for stripe in (26, 38, 50):
        pen.line([(stripe, 45), (stripe + 4, 62)], dark, 5)
    pen.polygon([(60, 26), (62, 2), (76, 17)], paint)
    pen.polygon([(80, 17), (95, 2), (95, 28)], paint)
    pen.ellipse(57, 13, 99, 53, paint)
    for eye in (68, 82):
        pen.ellipse(eye, 26, eye + 9, 36, (250, 245, 150), 1.5)
        pen.line([(eye + 4.5, 27), (eye + 4.5, 35)], _OUTLINE, 3)
    pen.polygon([(75, 39), (83, 39), (79, 45)], (255, 150, 165), 1)


def _turtle(pen: _Pen, paint: tuple[int, int, int]) -> None:
    limb = (150, 140, 95)
    for x0, x1 in ((16, 34), (58, 76)):
        pen.ellipse(x0, 62, x1, 92, limb)
    pen.polygon([(10, 66), (0, 76), (16, 76)], limb)
    pen.ellipse(74, 44, 99, 68, limb)
    pen.ellipse(87, 50, 93, 56, _WHITE, 2)
    pen.ellipse(6, 20, 82, 112, paint)
    pen.draw.rectangle([0, 76 * pen.unit, 100 * pen.unit, 100 * pen.unit], (0, 0, 0, 0))
    for x0, x1 in ((16, 34), (58, 76)):
        pen.ellipse(x0, 68, x1, 92, limb)
    pen.line([(7, 75), (82, 75)], _OUTLINE, 4)
    for cx, cy in ((28, 54), (44, 38), (60, 54), (44, 64)):
        hexagon = [(cx + 9 * np.cos(a), cy + 9 * np.sin(a)) for a in np.arange(6) * np.pi / 3]
        pen.polygon(hexagon, _shade(paint, 0.55), 1.5)


def _fish(pen: _Pen, paint: tuple[int, int, int]) -> None:
    pen.polygon([(28, 50), (2, 22), (10, 50), (2, 78)], _shade(paint, 0.6))
    pen.polygon([(42, 28), (60, 8), (68, 28)], _shade(paint, 0.6))
    pen.polygon([(46, 70), (54, 88), (66, 70)], _shade(paint, 0.6))
    pen.ellipse(18, 22, 98, 78, paint)
    for band in (40, 56, 70):
        pen.line([(band, 28), (band + 5, 50), (band, 72)], _WHITE, 6)
    pen.ellipse(78, 36, 91, 49, _WHITE, 2)
    pen.ellipse(83, 40, 89, 46, _OUTLINE, 1)


def _airplane(pen: _Pen, paint: tuple[int, int, int]) -> None:
    pen.polygon([(6, 44), (2, 14), (14, 14), (28, 44)], paint)
    pen.polygon([(46, 46), (26, 4), (40, 4), (68, 46)], _shade(paint, 0.75))
    pen.polygon([(4, 42), (78, 42), (94, 48), (99, 54), (92, 60), (24, 62), (4, 50)], _WHITE)
    pen.line([(6, 56), (96, 56)], paint, 6)
    for window in range(28, 80, 9):
        pen.ellipse(window, 45, window + 5, 51, (60, 70, 100), 1)
    pen.polygon([(44, 58), (20, 98), (34, 98), (66, 58)], paint)


def _burger(pen: _Pen, paint: tuple[int, int, int]) -> None:
    bun = (214, 150, 75)
    ruffle = [(x, 52 + 6 * (i % 2)) for i, x in enumerate(range(0, 101, 10))]
    pen.ellipse(5, 8, 95, 88, bun)
    pen.draw.rectangle([0, 48 * pen.unit, 100 * pen.unit, 100 * pen.unit], (0, 0, 0, 0))
    pen.polygon([(4, 47), (96, 47), (96, 54), (4, 54)], _shade(paint, 1.45))
    pen.polygon([*ruffle, (100, 66), (0, 66)], paint)
    pen.polygon([(3, 64), (97, 64), (97, 76), (3, 76)], (85, 45, 25))
    pen.polygon([(4, 76), (96, 76), (86, 96), (14, 96)], paint)  # the tray
    for x, y in ((28, 24), (44, 16), (60, 22), (76, 30), (48, 32), (20, 36)):
        pen.ellipse(x, y, x + 7, y + 5, (255, 240, 200), 1)


def _car(pen: _Pen, paint: tuple[int, int, int]) -> None:
    pen.polygon([(22, 46), (34, 22), (68, 22), (82, 46)], paint)
    pen.polygon([(30, 45), (38, 28), (50, 28), (50, 45)], (185, 220, 240), 1.5)
    pen.polygon([(55, 45), (55, 28), (65, 28), (74, 45)], (185, 220, 240), 1.5)
    pen.polygon([(2, 50), (14, 44), (88, 44), (98, 54), (98, 74), (2, 74)], paint)
    pen.line([(4, 60), (97, 60)], _shade(paint, 0.55), 4)
    pen.ellipse(88, 52, 97, 61, (255, 245, 170), 1.5)
    for wheel in (12, 64):
        pen.ellipse(wheel, 60, wheel + 26, 86, (35, 35, 40))
        pen.ellipse(wheel + 8, 68, wheel + 18, 78, (200, 200, 205), 1)


def _mountain(pen: _Pen, paint: tuple[int, int, int]) -> None:
    pen.polygon([(40, 96), (72, 22), (100, 96)], _shade(paint, 0.65))
    pen.polygon([(72, 22), (62, 46), (70, 42), (76, 50), (83, 46)], _WHITE, 1)
    pen.polygon([(0, 96), (36, 4), (74, 96)], paint)
    pen.polygon([(36, 4), (23, 36), (32, 30), (38, 40), (45, 31), (51, 38)], _WHITE, 1)
    for x, y in ((14, 92), (28, 84), (52, 88), (66, 92)):
        pen.polygon([(x, y), (x + 6, y - 18), (x + 12, y)], (25, 70, 40), 1)


_DRAW = {
    "person": _person, "cat": _cat, "turtle": _turtle, "fish": _fish,
    "airplane": _airplane, "burger": _burger, "car": _car, "mountain": _mountain,
}  # fmt: skip


def _background(scene: Scene, size: int) -> np.ndarray:
    """A part of the background's texture with the scene's own place and brightness, float32 (size, size, 3)."""
    rng = np.random.default_rng(scene.texture_seed)
    texture = _texture(BACKGROUNDS[scene.background], size)
    top, left = rng.integers(0, size, 2)
    return texture[top : top + size, left : left + size] * np.float32(rng.uniform(0.85, 1.08))


@lru_cache(maxsize=16)
def _texture(name: str, size: int) -> np.ndarray:
    """Textures of twice the frame's size, float32 (2 size, 2 size, 3), kept below 236 so that 1.08 times fits 255."""
    big = 2 * FRAME
    rng = np.random.default_rng(BACKGROUNDS.index(name))
    rows, columns = np.mgrid[:big, :big].astype(np.float32)
    if name == "grass":
        blades = np.clip(rng.normal(0, 1, (big, big)) + 0.8 * np.sin(columns * 1.3 + 3 * rng.normal(0, 1, big)), -2, 2)
        blades = (blades + np.roll(blades, 1, 0) + np.roll(blades, 2, 0) + np.roll(blades, 3, 0)) / 4
        texture = np.array([95, 130, 60]) + blades[..., None] * np.array([24, 30, 18])
    elif name == "water":
        waves = np.sin(rows * 0.75 + 2.2 * np.sin(columns * 0.16)) + 0.6 * np.sin(rows * 1.7 - columns * 0.22)
        texture = np.array([65, 135, 175]) + waves[..., None] * np.array([18, 24, 26])
    elif name == "brick":
        course = (rows // 8).astype(int)
        mortar = (rows % 8 < 1.5) | ((columns + 8 * (course % 2)) % 16 < 1.5)
        tone = rng.normal(0, 1, (big // 8, big // 16 + 1))
        tone = tone[course, ((columns + 8 * (course % 2)) // 16).astype(int)]
        texture = np.where(mortar[..., None], [190, 182, 172], np.array([150, 88, 66]) + tone[..., None] * 14)
    else:
        drifts = np.sin(rows * 0.22 + 1.6 * np.sin(columns * 0.09)) + 0.7 * rng.normal(0, 1, (big, big))
        texture = np.array([215, 220, 226]) + np.clip(drifts, -2.2, 1.4)[..., None] * np.array([13, 11, 7])
    texture = np.clip(texture, 0, 236).astype(np.float32)
    if size == FRAME:
        return texture
    channels = [
        np.asarray(Image.fromarray(texture[..., c]).resize((2 * size, 2 * size), Image.Resampling.BICUBIC))
        for c in range(3)
    ]
    return np.clip(np.stack(channels, -1), 0, 236)
