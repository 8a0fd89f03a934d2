"""Boxes from files written here in the official layouts, and their way through torchvision's own transforms."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torchvision import tv_tensors
from torchvision.transforms import v2

from cutmix.data import ArraySet, FileSet
from cutmix.data.boxes import BoxSet, benchmark_boxes, boxes_after, read_boxes
from cutmix.errors import InputError

NORM = ((0.5,) * 3, (0.5,) * 3)


def files(root: Path, *names: str, size: tuple[int, int] = (50, 40)) -> FileSet:
    for file in (root / name for name in names):
        file.parent.mkdir(parents=True, exist_ok=True)
        if not file.exists():
            Image.new("RGB", size).save(file)
    labels = torch.zeros(len(names), dtype=torch.int64)
    return FileSet("some", "test", ("a", "b"), labels, *NORM, tuple(root / name for name in names))


def tiny(n: int, *skipped: str) -> ArraySet:
    labels, images = torch.zeros(n, dtype=torch.int64), torch.zeros(n, 3, 64, 64, dtype=torch.uint8)
    paths = tuple(Path(name) for name in skipped)
    return ArraySet("tiny-imagenet-200", "test", ("a", "b"), labels, *NORM, images, paths)


def write(file: Path, text: str) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return file.parent


def as_lists(boxes: BoxSet) -> list[list[list[float]]]:
    return [own.tolist() for own in boxes.boxes]


def test_tiny_imagenet_names_the_last_pixel_inside(tmp_path: Path) -> None:
    lines = "val_0.JPEG\tn1\t0\t32\t44\t62\nval_1.JPEG\tn2\t0\t0\t63\t63\nval_2.JPEG\tn1\t5\t7\t5\t7\n"
    write(tmp_path / "val" / "val_annotations.txt", lines)
    boxes = read_boxes(tmp_path, tiny(3))
    assert as_lists(boxes) == [[[0, 32, 45, 63]], [[0, 0, 64, 64]], [[5, 7, 6, 8]]]
    assert boxes.sizes.tolist() == [[64, 64]] * 3
    assert as_lists(read_boxes(tmp_path, tiny(2, "val_1.JPEG"))) == [[[0, 32, 45, 63]], [[5, 7, 6, 8]]]
    with pytest.raises(InputError, match=r"has 3 boxes, which are not those of the 4 images of tiny-imagenet-200"):
        read_boxes(tmp_path, tiny(4))


@pytest.mark.parametrize("corners", ["0\t0\t70\t30", "9\t9\t3\t12", "-5\t0\t4\t4"])
def test_a_box_outside_its_image_is_refused_with_file_and_line(tmp_path: Path, corners: str) -> None:
    write(tmp_path / "val" / "val_annotations.txt", f"a.JPEG\tn\t0\t0\t1\t1\nb.JPEG\tn\t{corners}\n")
    with pytest.raises(
        InputError, match=r"val_annotations\.txt, line 2: the box from .* is not inside its image of 64×64"
    ):
        read_boxes(tmp_path, tiny(2))


def test_numbers_that_are_none_are_refused_with_file_and_line(tmp_path: Path) -> None:
    write(tmp_path / "val" / "val_annotations.txt", "a.JPEG\tn\t0\t0\tone\t1\n")
    with pytest.raises(InputError, match=r"val_annotations\.txt, line 1: '0 0 one 1' are not numbers"):
        read_boxes(tmp_path, tiny(1))


def test_cub_has_widths_and_any_order(tmp_path: Path) -> None:
    write(tmp_path / "images.txt", "1 001.A/a.jpg\n2 002.B/b.jpg\n")
    write(tmp_path / "bounding_boxes.txt", "1 10.0 20.0 30.0 15.0\n2 1.0 2.0 49.5 10.0\n")
    data = files(tmp_path / "images", "002.B/b.jpg", "001.A/a.jpg")
    boxes = read_boxes(tmp_path, data)
    assert as_lists(boxes) == [[[1, 2, 50, 12]], [[10, 20, 40, 35]]]  # the half pixel beyond the border is cut
    assert boxes.sizes.tolist() == [[50, 40]] * 2
    write(tmp_path / "bounding_boxes.txt", "1 10.0 20.0 30.0 25.0\n2 1.0 2.0 49.0 10.0\n")
    with pytest.raises(InputError, match=r"bounding_boxes\.txt, line 1: the box from 10, 20 to 40, 45 .* 50×40"):
        read_boxes(tmp_path, data)
    write(tmp_path / "bounding_boxes.txt", "1 10.0 20.0 30.0 15.0\n")
    with pytest.raises(InputError, match=r"bounding_boxes\.txt has no box for b\.jpg"):
        read_boxes(tmp_path, data)


def annotation(*corners: tuple[int, int, int, int]) -> str:
    objects = "".join(
        f"<object>\n<bndbox>\n<xmin>{a}</xmin><ymin>{b}</ymin><xmax>{c}</xmax><ymax>{d}</ymax>\n</bndbox>\n</object>\n"
        for a, b, c, d in corners
    )
    return f"<annotation>\n<size><width>500</width><height>375</height></size>\n{objects}</annotation>\n"


def test_imagenet_has_several_boxes_an_image(tmp_path: Path) -> None:
    data = files(tmp_path / "images" / "val", "n1/ILSVRC2012_val_00000002.JPEG", "n2/ILSVRC2012_val_00000001.JPEG")
    folder = tmp_path / "bbox"
    write(folder / "val" / "ILSVRC2012_val_00000001.xml", annotation((111, 108, 441, 193)))
    write(folder / "val" / "ILSVRC2012_val_00000002.xml", annotation((45, 49, 499, 162), (2, 69, 437, 207)))
    boxes = read_boxes(folder, data)
    assert as_lists(boxes) == [[[45, 49, 500, 163], [2, 69, 438, 208]], [[111, 108, 442, 194]]]
    assert boxes.sizes.tolist() == [[500, 375]] * 2
    assert as_lists(read_boxes(folder / "val", data)) == as_lists(boxes)
    write(folder / "val" / "ILSVRC2012_val_00000002.xml", annotation((45, 49, 499, 162), (2, 69, 537, 207)))
    with pytest.raises(
        InputError, match=r"object 2 of .*val_00000002\.xml: the box .* is not inside its image of 500×375"
    ):
        read_boxes(folder, data)
    write(folder / "val" / "ILSVRC2012_val_00000002.xml", annotation())
    with pytest.raises(InputError, match=r"has no box for ILSVRC2012_val_00000002\.JPEG"):
        read_boxes(folder, data)
    write(folder / "val" / "ILSVRC2012_val_00000002.xml", "<annotation>")
    with pytest.raises(InputError, match=r"val_00000002\.xml cannot be read as XML"):
        read_boxes(folder, data)


def test_parts_encodings_and_sizes_are_read_as_in_detection(tmp_path: Path) -> None:
    data = files(tmp_path, "a.jpg", size=(50, 40))
    part = "<part><name>tête</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox></part>"
    box = "<bndbox><xmin>5</xmin><ymin>6</ymin><xmax>20</xmax><ymax>30</ymax></bndbox>"
    text = (
        '<?xml version="1.0" encoding="iso-8859-1"?><annotation><size><width>50.0</width><height>40.0</height></size>'
        f"<object><name>chien né</name>{part}{box}</object></annotation>"
    )
    (tmp_path / "a.xml").write_bytes(text.encode("iso-8859-1"))
    boxes = read_boxes(tmp_path, data)
    assert as_lists(boxes) == [[[5, 6, 21, 31]]]
    assert boxes.sizes.tolist() == [[50, 40]]


def marked(folder: Path, name: str, orientation: int, drawn_on: str, size: tuple[int, int] = (50, 40)) -> np.ndarray:
    """Store an image with a white rectangle and the annotation of its box; return the upright pixels by Pillow."""
    pixels = np.zeros((*size[::-1], 3), dtype=np.uint8)
    pixels[5:16, 30:38] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(folder / f"{name}.png", exif=exif)
    with Image.open(folder / f"{name}.png") as image:
        upright = np.asarray(ImageOps.exif_transpose(image))
    drawn = pixels if drawn_on == "stored" else upright
    rows, columns = np.nonzero(drawn[..., 0])
    box = (columns.min(), rows.min(), columns.max(), rows.max())
    write(
        folder / f"{name}.xml", annotation(box).replace("500", str(drawn.shape[1])).replace("375", str(drawn.shape[0]))
    )
    return upright


def surrounds(box: np.ndarray, upright: np.ndarray) -> bool:
    x0, y0, x1, y1 = box.astype(int).tolist()
    return upright[y0:y1, x0:x1].min() == 255 and upright[..., 0].sum() == 255 * (y1 - y0) * (x1 - x0)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("drawn_on", ["stored", "upright"])
def test_boxes_turn_with_their_image(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, orientation: int, drawn_on: str
) -> None:
    """Where the size does not tell the axes, another image of the same folder does."""
    upright = marked(tmp_path, "a", orientation, drawn_on)
    marked(tmp_path, "b", 6, drawn_on)
    square = marked(tmp_path, "c", orientation, drawn_on, (40, 40))
    boxes = read_boxes(tmp_path, files(tmp_path, "a.png", "b.png", "c.png"))
    assert boxes.sizes.tolist() == [[upright.shape[1], upright.shape[0]], [40, 50], [40, 40]]
    assert surrounds(boxes.boxes[0][0], upright)
    assert surrounds(boxes.boxes[2][0], square)
    first = {1: "", 2: "a.png and 1 more", 3: "a.png and 1 more", 4: "a.png and 1 more"}.get(orientation, "c.png")
    assert (f"{first}, and the annotation does not say" in caplog.text) == (orientation > 1)
    assert ("of the stored image" in caplog.text) == (drawn_on == "stored" and orientation > 1)


@pytest.mark.parametrize("orientation", range(2, 9))
def test_boxes_are_those_of_the_upright_image_where_nothing_tells(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, orientation: int
) -> None:
    upright = marked(tmp_path, "a", orientation, "upright", (40, 40))
    assert surrounds(read_boxes(tmp_path, files(tmp_path, "a.png")).boxes[0][0], upright)
    assert f"EXIF turns {tmp_path / 'a.png'}, and" in caplog.text
    assert "read as boxes of the upright image" in caplog.text


def test_boxes_of_cub_on_turned_images_are_noted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """CUB gives no size of the image, so that nothing tells the axes, whatever the orientation."""
    for name, orientation in (("a", 6), ("b", 3)):
        (tmp_path / "x").mkdir(exist_ok=True)
        upright = marked(tmp_path / "x", name, orientation, "upright")
    write(tmp_path / "images.txt", "1 x/a.png\n2 x/b.png\n")
    rows, columns = np.nonzero(upright[..., 0])  # of b
    x, y, width, height = columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1
    write(tmp_path / "bounding_boxes.txt", f"1 1 2 3 4\n2 {x} {y} {width} {height}\n")
    boxes = read_boxes(tmp_path, files(tmp_path, "x/a.png", "x/b.png"))
    assert boxes.sizes.tolist() == [[40, 50], [50, 40]]
    assert surrounds(boxes.boxes[1][0], upright)
    assert f"EXIF turns {tmp_path / 'x' / 'a.png'} and 1 more, and the annotation does not say" in caplog.text
    assert "read as boxes of the upright image" in caplog.text


def test_corners_as_shares_of_the_sides_are_refused(tmp_path: Path) -> None:
    data = files(tmp_path, "x/a.jpg")
    write(tmp_path / "images.txt", "1 x/a.jpg\n")
    write(tmp_path / "bounding_boxes.txt", "1 0.1 0.2 0.5 0.5\n")
    with pytest.raises(InputError, match="are within the first pixel; expected corners in pixels"):
        read_boxes(tmp_path, data)


def test_metadata_of_wsolevaluation(tmp_path: Path) -> None:
    folder = write(
        tmp_path / "test" / "localization.txt", "val/a.JPEG,0,1,9,19\nval/b.JPEG,5,5,49,39\nval/a.JPEG,3,4,5,6"
    )
    write(folder / "image_sizes.txt", "val/a.JPEG,10,20\nval/b.JPEG,50,40")
    data = files(tmp_path / "images", "val/b.JPEG", "val/a.JPEG")
    boxes = read_boxes(folder, data)
    assert as_lists(boxes) == [[[5, 5, 50, 40]], [[0, 1, 10, 20], [3, 4, 6, 7]]]
    assert boxes.sizes.tolist() == [[50, 40], [10, 20]]
    with pytest.raises(InputError, match=r"localization\.txt has no box for c\.JPEG"):
        read_boxes(folder, files(tmp_path / "images", "val/c.JPEG"))


def test_the_benchmark_scales_and_cuts_the_last_pixel() -> None:
    boxes = BoxSet(
        (np.array([[111, 108, 442, 194]]), np.array([[45, 49, 500, 163], [2, 69, 438, 208]])),
        np.array([[500, 375]] * 2),
    )
    for own, scaled in zip(boxes.boxes, benchmark_boxes(boxes), strict=True):
        for (x0, y0, x1, y1), box in zip(own, scaled, strict=True):
            inclusive = [int(x0 * 224 / 500), int(y0 * 224 / 375), int((x1 - 1) * 224 / 500), int((y1 - 1) * 224 / 375)]
            assert box.tolist() == [inclusive[0], inclusive[1], inclusive[2] + 1, inclusive[3] + 1]


def test_the_benchmark_multiplies_before_it_divides() -> None:
    """The oracle is the arithmetic of ``resize_bbox`` in clovaai/wsolevaluation, for every pixel of usual sides."""
    (scaled,) = benchmark_boxes(BoxSet((np.array([[294, 0, 343, 1]]),), np.array([[343, 343]])))
    assert scaled[0, 0] == 192  # 294 · 224 / 343 is whole; 294 · (224 / 343) is not
    sides = np.arange(100, 601)
    columns = [np.arange(side) for side in sides]
    boxes = [np.stack([x, 0 * x, x + 1, 0 * x + 1], axis=1) for x in columns]
    for x, side, found in zip(
        columns, sides, benchmark_boxes(BoxSet(tuple(boxes), sides[:, None].repeat(2, 1))), strict=True
    ):
        assert found[:, 0].tolist() == [int(float(each) * 224.0 / float(side)) for each in x]


@pytest.mark.parametrize("size", [(500, 375), (333, 500), (101, 100), (64, 64)])
@pytest.mark.parametrize("squash", [False, True])
def test_boxes_go_where_torchvision_takes_them(size: tuple[int, int], squash: bool) -> None:
    width, height = size
    own = np.array([[0, 0, width, height], [width // 3, height // 4, width // 2, height - 3]], dtype=np.float64)
    steps = v2.Compose([v2.Resize([256, 256] if squash else 256), v2.CenterCrop(224)])
    boxes = tv_tensors.BoundingBoxes(torch.from_numpy(own), format="XYXY", canvas_size=(height, width))
    np.testing.assert_allclose(
        boxes_after(own, size, resize=256, crop=224, squash=squash), steps(boxes).numpy(), atol=1e-4
    )


def test_a_square_in_an_image_stays_in_its_box() -> None:
    image = np.zeros((90, 150, 3), dtype=np.uint8)
    image[30:60, 45:105] = 255
    steps = v2.Compose([v2.Resize(60), v2.CenterCrop(48), v2.PILToTensor()])
    rows, columns = np.nonzero(steps(Image.fromarray(image))[0].numpy() > 127)
    seen = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    np.testing.assert_allclose(
        boxes_after(np.array([[45, 30, 105, 60]]), (150, 90), resize=60, crop=48)[0], seen, atol=0.5
    )


def test_a_box_outside_the_crop_is_empty_and_a_set_is_moved_at_once() -> None:
    boxes = BoxSet((np.array([[0, 0, 10, 10]]), np.array([[0, 0, 100, 50]])), np.array([[100, 50], [100, 50]]))
    outside, whole = boxes.after(resize=50, crop=50)
    assert (outside[:, 2:] - outside[:, :2]).prod() == 0
    assert whole.tolist() == [[0, 0, 50, 50]]
    assert len(boxes) == 2


def test_folders_and_sets_without_boxes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no boxes; expected val/val_annotations\.txt"):
        read_boxes(tmp_path, tiny(1))
    write(tmp_path / "bounding_boxes.txt", "")
    with pytest.raises(InputError, match="has the boxes of image files, but tiny-imagenet-200 is not a set of files"):
        read_boxes(tmp_path, tiny(1))


def xml_of(folder: Path) -> None:
    write(folder / "a.xml", annotation((111, 108, 441, 193)))


def metadata_of(folder: Path) -> None:
    write(folder / "localization.txt", "a.jpg,0,1,9,19")
    write(folder / "image_sizes.txt", "a.jpg,50,40")


def cub_of(folder: Path) -> None:
    write(folder / "images.txt", "1 x/a.jpg")
    write(folder / "bounding_boxes.txt", "1 1 2 30 20")


@pytest.mark.parametrize(
    ("layout", "names"),
    [(xml_of, ("x/a.jpg", "x/a.png")), (xml_of, ("x/a.jpg", "y/a.jpg")), (metadata_of, ("x/a.jpg", "y/a.jpg")),
     (cub_of, ("1/x/a.jpg", "2/x/a.jpg"))],
)  # fmt: skip
def test_an_annotation_of_two_images_is_refused(
    layout: Callable[[Path], None], names: tuple[str, str], tmp_path: Path
) -> None:
    layout(tmp_path / "boxes")
    first, second = (re.escape(name) for name in names)
    with pytest.raises(InputError, match=f"{first} and .*{second} both belong to the annotation .*a"):
        read_boxes(tmp_path / "boxes", files(tmp_path, *names))
    assert len(read_boxes(tmp_path / "boxes", files(tmp_path, names[0]))) == 1
