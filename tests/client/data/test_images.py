import re
import warnings
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

from client.data import load, parse_source
from client.data.images import load_image
from models.errors import DataError

GREY = np.array([[0, 51], [102, 255]], dtype=np.uint8)


def save(path: Path, pixels: npt.NDArray[np.generic] = GREY) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def refuses(folder: Path, message: str, options: str = "") -> None:
    with pytest.raises(DataError, match=message):
        load(parse_source(f"images:{folder}{options}"))


def test_load_images_numbered_folders_are_the_classes_in_order(tmp_path: Path) -> None:
    save(tmp_path / "10" / "a.png", GREY // 2)
    save(tmp_path / "7" / "b.PNG")
    save(tmp_path / "7" / "a.bmp", 255 - GREY)
    (tmp_path / ".cache").touch()
    (tmp_path / "7" / ".thumbnails").touch()
    examples = load(parse_source(f"images:{tmp_path}"))
    assert (examples.inputs.dtype, examples.targets.dtype) == (torch.float32, torch.int64)
    assert examples.targets.tolist() == [7, 7, 10]
    expected = np.stack([255 - GREY, GREY, GREY // 2])[:, None].astype(np.float32) / 255
    np.testing.assert_array_equal(examples.inputs.numpy(), expected)


def test_load_images_listed_classes_are_numbered_by_position(tmp_path: Path) -> None:
    for name in ("ant", "bee", "9"):
        save(tmp_path / name / "a.png")
    examples = load(parse_source(f"images:{tmp_path},classes=bee|9|ant"))
    assert examples.targets.tolist() == [0, 1, 2]


def test_load_images_unlabelled_folder_holds_the_images_themselves(tmp_path: Path) -> None:
    save(tmp_path / "b.png", GREY)
    save(tmp_path / "a.png", 255 - GREY)
    examples = load(parse_source(f"images:{tmp_path},unlabelled=true"))
    assert (examples.targets.dtype, examples.targets.shape) == (torch.int64, (2, 0))
    np.testing.assert_allclose(examples.inputs[:, 0].numpy() * 255, np.stack([255 - GREY, GREY]), rtol=1e-6)


def test_load_images_unlabelled_folder_of_folders_or_of_none_is_refused(tmp_path: Path) -> None:
    refuses(tmp_path, re.escape(f"Image folder {tmp_path}: folder must hold at least 1 image, got"), ",unlabelled=true")
    save(tmp_path / "cat" / "a.png")
    refuses(tmp_path, r"Image folder .*: folder must hold only images \(.*\), got 'cat'", ",unlabelled=true")


@pytest.mark.parametrize("suffix", ["png", "jpg", "jpeg", "bmp", "tif", "tiff", "webp", "gif"])
def test_load_images_every_format_is_read(tmp_path: Path, suffix: str) -> None:
    save(tmp_path / "0" / f"a.{suffix}", np.full((9, 5), 128, dtype=np.uint8))
    examples = load(parse_source(f"images:{tmp_path}"))
    assert examples.inputs.shape == (1, 1, 9, 5)
    assert torch.allclose(examples.inputs, torch.tensor(128 / 255), atol=2 / 255)


def test_load_images_colours_are_kept_in_order(tmp_path: Path) -> None:
    colour = np.array([[[255, 0, 51]]], dtype=np.uint8)
    save(tmp_path / "0" / "a.png", colour)
    examples = load(parse_source(f"images:{tmp_path},channels=3"))
    np.testing.assert_allclose(examples.inputs.numpy().ravel(), [1, 0, 0.2])


def test_load_images_grey_of_a_colour_is_its_luma(tmp_path: Path) -> None:
    save(tmp_path / "0" / "a.png", np.array([[[255, 0, 0]]], dtype=np.uint8))
    assert load(parse_source(f"images:{tmp_path}")).inputs.item() == pytest.approx(0.299, abs=1 / 255)  # ITU-R 601


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("channels", [1, 3])
def test_load_images_16_bits_keep_their_range(tmp_path: Path, suffix: str, channels: int) -> None:
    save(tmp_path / "0" / f"a.{suffix}", np.array([[0, 13107, 65535]], dtype=np.uint16))
    examples = load(parse_source(f"images:{tmp_path},channels={channels}"))
    np.testing.assert_allclose(examples.inputs.numpy(), np.full((1, channels, 1, 3), [0, 0.2, 1], dtype=np.float32))


def test_load_images_palette_with_transparency_is_read_as_its_colours(tmp_path: Path) -> None:
    palette = Image.fromarray(GREY).convert("P")
    (tmp_path / "0").mkdir()
    palette.save(tmp_path / "0" / "a.png", transparency=bytes([0, 128, 255]))
    examples = load(parse_source(f"images:{tmp_path}"))
    np.testing.assert_allclose(examples.inputs[0, 0].numpy(), GREY / 255, rtol=1e-6)


def test_load_images_size_resizes_every_image(tmp_path: Path) -> None:
    save(tmp_path / "0" / "a.png", np.full((40, 20), 51, dtype=np.uint8))
    save(tmp_path / "0" / "b.png", np.full((3, 3), 13107, dtype=np.uint16))
    examples = load(parse_source(f"images:{tmp_path},size=8"))
    assert examples.inputs.shape == (2, 1, 8, 8)
    assert torch.allclose(examples.inputs, torch.tensor(0.2))


def test_load_images_other_size_names_the_image_and_the_option(tmp_path: Path) -> None:
    save(tmp_path / "0" / "a.png", np.zeros((4, 6), dtype=np.uint8))
    path = save(tmp_path / "1" / "b.png", np.zeros((6, 4), dtype=np.uint8))
    refuses(tmp_path, re.escape(f"Image {path}: size must be 6x4 like that of the first image, got 4x6. Add ,size=4"))


def test_load_images_text_classes_give_the_text_to_add(tmp_path: Path) -> None:
    for name in ("cat", "ant", "3"):
        save(tmp_path / name / "a.png")
    message = f"Image folder {tmp_path}: classes must be listed .* Add ,classes=3|ant|cat to .* every site numbers the classes alike"
    refuses(tmp_path, message.replace("|", r"\|"))


def test_load_images_class_that_no_list_can_hold_is_to_be_renamed(tmp_path: Path) -> None:
    save(tmp_path / "a|b" / "a.png")
    refuses(tmp_path, r"a class must be named without '\|' and ',key=', got 'a\|b'. Rename it")


def test_load_images_two_folders_of_one_number_are_refused(tmp_path: Path) -> None:
    for name in ("07", "7"):
        save(tmp_path / name / "a.png")
    refuses(tmp_path, "class 7 must have one folder, got '07' and '7'")


def test_load_images_listed_folder_that_is_missing_is_named(tmp_path: Path) -> None:
    save(tmp_path / "ant" / "a.png")
    refuses(tmp_path, re.escape(f"folder {tmp_path / 'bee'} must exist, as classes lists 'bee'"), ",classes=ant|bee")


def test_load_images_folder_that_is_not_listed_is_named(tmp_path: Path) -> None:
    for name in ("ant", "bee"):
        save(tmp_path / name / "a.png")
    refuses(tmp_path, "classes must list 'bee', got ant. Add it", ",classes=ant")


def test_load_images_class_without_images_is_named(tmp_path: Path) -> None:
    save(tmp_path / "0" / "a.png")
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / ".hidden").touch()
    refuses(tmp_path, re.escape(f"Class folder {tmp_path / '1'}: folder must hold at least 1 image, got none"))


def test_load_images_empty_folder_is_refused(tmp_path: Path) -> None:
    refuses(tmp_path, "folder must hold one folder a class, got none")


def test_load_images_file_beside_the_class_folders_is_named(tmp_path: Path) -> None:
    save(tmp_path / "0" / "a.png")
    save(tmp_path / "b.png")
    refuses(tmp_path, r"Class folder .*b\.png: path must be a folder, got a file")


@pytest.mark.parametrize("name", ["notes.txt", "deeper/a.png"])
def test_load_images_what_is_no_image_is_named(tmp_path: Path, name: str) -> None:
    save(tmp_path / "0" / "a.png")
    (tmp_path / "0" / name).parent.mkdir(exist_ok=True)
    (tmp_path / "0" / name).write_text("no image", encoding="utf-8")
    refuses(tmp_path, rf"folder must hold only images \(.*\), got '{name.split('/')[0]}'")


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "tif", "webp", "gif"])
@pytest.mark.parametrize("kept", [0.0, 0.1, 0.8])
def test_load_images_cut_off_file_is_named(tmp_path: Path, suffix: str, kept: float) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
    path = save(tmp_path / "0" / f"a.{suffix}", noise)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # Pillow's, on the cut TIFF
        refuses(tmp_path, f"Image {re.escape(str(path))}: file must be a readable image, got ")


def test_load_images_other_format_under_the_name_of_an_image_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "0" / "a.png"
    path.parent.mkdir()
    Image.fromarray(GREY).save(path, format="PPM")
    refuses(tmp_path, "file must be a readable image, got an error: cannot identify image file")


@pytest.mark.parametrize(("limit", "pixels"), [(63, "warning"), (31, "error")])
def test_load_images_decompression_bomb_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int, pixels: str
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    path = save(tmp_path / "0" / "a.png", np.zeros((8, 8), dtype=np.uint8))
    refuses(
        tmp_path,
        re.escape(f"Image {path}: size must be safe to decode, got an error: Image size (64 pixels) exceeds limit"),
    )


def test_load_images_first_frame_of_a_camera_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "0").mkdir()
    picture, preview = (Image.fromarray(np.full((8, 8, 3), value, dtype=np.uint8)) for value in (51, 255))
    picture.save(tmp_path / "0" / "a.jpg", format="MPO", save_all=True, append_images=[preview])
    examples = load(parse_source(f"images:{tmp_path}"))
    assert torch.allclose(examples.inputs, torch.full((1, 1, 8, 8), 0.2), atol=2 / 255)


def test_load_images_several_frames_are_refused(tmp_path: Path) -> None:
    (tmp_path / "0").mkdir()
    frames = [Image.fromarray(GREY), Image.fromarray(255 - GREY)]
    frames[0].save(tmp_path / "0" / "a.tif", save_all=True, append_images=frames[1:])
    refuses(tmp_path, "file must hold one frame, got 2. Save each frame as a file")


@pytest.mark.parametrize("kind", [np.int32, np.float32])
def test_load_images_32_bits_are_refused(tmp_path: Path, kind: type[np.generic]) -> None:
    save(tmp_path / "0" / "a.tif", GREY.astype(kind))
    refuses(tmp_path, "values must have 8 or 16 bits, got mode [IF] of 32")


def test_load_image_is_resized_to_the_learners_shape(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", np.repeat(np.repeat(GREY, 4, axis=0), 6, axis=1))
    found = load_image(path, (3, 2, 2))
    assert (found.dtype, found.shape) == (torch.float32, (3, 2, 2))
    # Each corner is of one value, but for what bilinear filtering takes from beyond the middle.
    np.testing.assert_allclose(found.numpy(), np.stack([GREY] * 3) / 255, atol=0.2)
    whole = load_image(path, (1, 8, 12))
    np.testing.assert_array_equal(whole[0, ::4, ::6].numpy(), GREY.astype(np.float32) / 255)


def test_load_image_for_a_learner_of_other_channels_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"images must have 1 or 3 channels to be read from a file, got 4\."):
        load_image(save(tmp_path / "a.png"), (4, 8, 8))
