"""Image folders: one folder a class, or images without classes, read with Pillow."""

import struct
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from client.data.classes import class_number, classes_wanted
from client.data.fields import reason
from client.data.options import ImagesOptions
from client.data.paths import require_folder, visible_entries
from models.errors import DataError
from models.learner import Examples

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".gif"})

_FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP", "GIF")
_DECODER_ERRORS = (
    OSError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    SyntaxError,
    EOFError,
    MemoryError,
    struct.error,
)
_UNBOUNDED_MODES = ("I", "F")

Pixels = npt.NDArray[np.float32]
Size = tuple[int, int]
"""Width and height, as Pillow has them."""


def load_images(path: Path, options: ImagesOptions) -> Examples:
    """Read every image below `path`, in the order of class numbers, then of file names. Hidden files are passed over.

    Returns:
        Inputs float32 (images, channels, height, width) from 0 to 1, targets int64 (images,), or (images, 0) with `unlabelled`.

    Raises:
        DataError: A class folder is missing, unknown or empty, a file is no usable image, or sizes differ with no `size`.
    """
    require_folder("Image folder", path)
    images: list[Pixels] = []
    targets: list[list[int] | int] = []
    size = (options.size, options.size) if options.size else None
    for target, file in _labelled_files(path, options):
        pixels = _read(file, options.channels, size)
        if images and pixels.shape != images[0].shape:
            raise _other_size(file, pixels, images[0])
        images.append(pixels)
        targets.append(target)
    return Examples(torch.from_numpy(np.stack(images)), torch.tensor(targets, dtype=torch.int64))


def load_image(path: Path, shape: tuple[int, int, int]) -> Tensor:
    """Read one image, resized to the `shape` of a learner's images: channels, 1 or 3, height and width.

    Returns:
        float32 (channels, height, width) from 0 to 1.

    Raises:
        DataError: The file is no usable image, or `shape` has another number of channels.
    """
    channels, height, width = shape
    if channels not in (1, 3):
        raise DataError(
            f"Image {path}: the learner's images must have 1 or 3 channels to be read from a file, got {channels}."
        )
    return torch.from_numpy(_read(path, channels, (width, height)))


def _labelled_files(path: Path, options: ImagesOptions) -> Iterator[tuple[list[int] | int, Path]]:
    """Yield the target of each image, [] for none, and its file."""
    if options.unlabelled:
        for file in _image_files("Image folder", path):
            yield [], file
        return
    for number, folder in sorted(_class_folders(path, options.classes).items()):
        for file in _image_files("Class folder", folder):
            yield number, file


def _class_folders(path: Path, classes: tuple[str, ...] | None) -> dict[int, Path]:
    folders = {entry.name: entry for entry in visible_entries(path)}
    for folder in folders.values():
        require_folder("Class folder", folder)
    if not folders:
        raise DataError(
            f"Image folder {path}: folder must hold one folder a class, got none. Add one, with its images."
        )
    if classes is None:
        return _numbered_folders(path, folders)
    for name in classes:
        if name not in folders:
            raise DataError(
                f"Image folder {path}: folder {path / name} must exist, as classes lists {name!r}, got none. Add it."
            )
    for name in folders:
        if name not in classes:
            raise DataError(
                f"Image folder {path}: classes must list {name!r}, got {'|'.join(classes)}. Add it, or move it."
            )
    return {number: folders[name] for number, name in enumerate(classes)}


def _numbered_folders(path: Path, folders: dict[str, Path]) -> dict[int, Path]:
    numbered: dict[int, Path] = {}
    for name, folder in folders.items():
        number = class_number(name)
        if number is None:
            raise classes_wanted(f"Image folder {path}", folders)
        if number in numbered:
            raise DataError(
                f"Image folder {path}: class {number} must have one folder, "
                f"got {numbered[number].name!r} and {name!r}. Merge them."
            )
        numbered[number] = folder
    return numbered


def _image_files(subject: str, folder: Path) -> list[Path]:
    files = visible_entries(folder)
    if not files:
        raise DataError(
            f"{subject} {folder}: folder must hold at least 1 image, got none. Add images, or remove the folder."
        )
    for file in files:
        if file.suffix.lower() not in SUFFIXES or not file.is_file():
            raise DataError(
                f"{subject} {folder}: folder must hold only images ({', '.join(sorted(SUFFIXES))}), "
                f"got {file.name!r}. Move it."
            )
    return files


def _read(file: Path, channels: int, size: Size | None) -> Pixels:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(file, formats=_FORMATS) as image:
                _require_usable(file, image)
                return np.stack(list(_planes(image, channels, size)))  # (channels, height, width)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise DataError(
            f"Image {file}: size must be safe to decode, got {reason(error)}. Make the image smaller."
        ) from error
    except _DECODER_ERRORS as error:
        raise DataError(f"Image {file}: file must be a readable image, got {reason(error)}. Replace it.") from error


def _require_usable(file: Path, image: Image.Image) -> None:
    frame_count = getattr(image, "n_frames", 1)
    # Many cameras write .jpg files as MPO, whose later frames are previews.
    if frame_count > 1 and image.format != "MPO":
        raise DataError(f"Image {file}: file must hold one frame, got {frame_count}. Save each frame as a file.")
    if image.mode in _UNBOUNDED_MODES:
        raise DataError(
            f"Image {file}: values must have 8 or 16 bits, got mode {image.mode} of 32. Save it with fewer."
        )


def _planes(image: Image.Image, channels: int, size: Size | None) -> Iterator[Pixels]:
    """Yield float32 (height, width) from 0 to 1 for each channel."""
    if image.mode.startswith("I;16"):  # Pillow's own conversion to 8 bits would cut all values off at 255
        planes = [Image.fromarray(np.asarray(image, dtype=np.float32))] * channels
        scale = np.float32(65535)
    else:
        opaque = image.convert("RGBA") if "transparency" in image.info else image
        planes = list(opaque.convert("L" if channels == 1 else "RGB").split())
        scale = np.float32(255)
    for plane in planes:
        sized = plane.resize(size, Image.Resampling.BILINEAR) if size else plane
        yield np.asarray(sized, dtype=np.float32) / scale


def _other_size(file: Path, pixels: Pixels, first: Pixels) -> DataError:
    height, width = pixels.shape[1:]
    first_height, first_width = first.shape[1:]
    return DataError(
        f"Image {file}: size must be {first_width}x{first_height} like that of the first image, got {width}x{height}. "
        f"Add ,size={min(first_width, first_height)} to the data source to resize every image."
    )
