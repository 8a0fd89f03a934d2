"""Pictures with their captions, in the layouts of COCO captions and of Flickr8k."""

import csv
import hashlib
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from cutmix.errors import InputError
from cutmix.transfer.split import Split, listed_names, names_by_hash, read_text

_FLICKR_FILES = ("Flickr8k.token.txt", "Flickr8k_text/Flickr8k.token.txt", "captions.txt")
_FLICKR_FOLDERS = ("Flicker8k_Dataset", "Flickr8k_Dataset", "Images", "images")  # the first one is the official name
_COCO_SPLITS = {"train": "train", "test": "val"}


@dataclass(frozen=True, eq=False)
class CaptionSet:
    """One split: N pictures, each with one or more captions.

    Attributes:
        name: The folder's name.
        split: "train" or "test".
        paths: The N files; their names are what scores and captions are filed under, so none occurs twice.
        captions: Of each picture, as they were written.
        mean: Of each channel, pixels taken as 0 to 1; replace both by those that the encoder was trained with.
        std: Of each channel, pixels taken as 0 to 1.
    """

    name: str
    split: Split
    paths: tuple[Path, ...]
    captions: tuple[tuple[str, ...], ...]
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def references(self) -> dict[str, tuple[str, ...]]:
        """The captions by the names of the files, as ``caption_scores`` takes them."""
        return {path.name: captions for path, captions in zip(self.paths, self.captions, strict=True)}

    def fingerprint(self) -> str:
        """Return a digest of which pictures these are, in which order, with which captions."""
        return hashlib.blake2b(json.dumps(list(self.references.items())).encode(), digest_size=16).hexdigest()


def open_captions(path: str | Path, split: Split, *, val_fraction: float = 0.2, seed: int = 0) -> CaptionSet:
    """Open one split of a set of pictures with captions.

    Recognised are

    * COCO captions: ``captions_train*.json`` (train) and ``captions_val*.json`` (test), in the folder or in
      ``annotations/``, with the pictures in ``train2014/`` and so on, in the folder or in ``images/``;
    * Flickr8k: ``Flickr8k.token.txt`` (``NAME#0<tab>CAPTION``) or ``captions.txt`` (``image,caption``) and the pictures
      in ``Flicker8k_Dataset/``, ``Images/`` or ``images/``. The splits are those of ``*.trainImages.txt`` and
      ``*.testImages.txt``; the development pictures are then not used. Without these files ``val_fraction`` of the
      pictures are the test split: those whose hash with ``seed`` is smallest, so that a new one moves hardly any other.

    Args:
        path: The folder.
        split: "train" or "test".
        val_fraction: In (0, 1).
        seed: Decides that split, and nothing else.

    Raises:
        InputError: Nothing usable is there, a picture or its captions are missing, or a caption has no word.

    Source: the file formats of the two sets' authors. The code base of CutMix's table A2 trains on train2014 and
    measures on val2014.
    """
    root = Path(path).expanduser()
    if split not in get_args(Split):
        raise InputError(f"split is '{split}': expected 'train' or 'test'")
    if not 0 < val_fraction < 1:
        raise InputError(f"val_fraction is {val_fraction}: expected a share between 0 and 1")
    if not root.is_dir():
        raise InputError(f"{path} is not a folder: expected one in COCO's or Flickr8k's layout of captions")
    flickr = next((root / name for name in _FLICKR_FILES if (root / name).is_file()), None)
    if flickr:
        return _open_flickr(root, flickr, split, val_fraction, seed)
    return _open_coco(root, split)


def _caption_set(root: Path, split: Split, source: Path, folder: Path, captions: Mapping[str, list[str]]) -> CaptionSet:
    """Check that every picture is there and every caption has a word."""
    if not captions:
        raise InputError(f"{source} leaves no {split} pictures: expected one or more with captions")
    there = {entry.name for entry in folder.iterdir()}
    for name, texts in captions.items():
        if name not in there:
            raise InputError(f"{source} names the picture '{name}', which is not in {folder}")
        if not texts:
            raise InputError(f"{source} has no caption for the picture '{name}': expected one or more")
        if not all(any(letter.isalnum() for letter in text) for text in texts):
            raise InputError(f"{source} has an empty caption for the picture '{name}': expected words")
    paths = tuple(folder / name for name in captions)
    return CaptionSet(root.resolve().name, split, paths, tuple(map(tuple, captions.values())))


def _first_folder(places: Sequence[Path], what: str) -> Path:
    found = next((place for place in places if place.is_dir()), None)
    if found is None:
        raise InputError(f"{what} has no pictures: expected them in {' or '.join(map(str, places))}")
    return found


# ---- COCO ----


def _open_coco(root: Path, split: Split) -> CaptionSet:
    pattern = f"captions_{_COCO_SPLITS[split]}*.json"
    found = sorted([*root.glob(pattern), *root.glob(f"annotations/{pattern}")])
    if len(found) != 1:
        what = f"both {found[0].name} and {found[1].name}" if found else "no captions"
        raise InputError(
            f"{root} holds {what}: expected one {pattern}, there or in annotations/, or the captions.txt or "
            "Flickr8k.token.txt of Flickr8k"
        )
    source = found[0]
    part = source.stem.removeprefix("captions_")
    folder = _first_folder([root / part, root / "images" / part, root / "images"], str(source))
    try:
        content = json.loads(read_text(source))
        names = {image["id"]: str(image["file_name"]) for image in content["images"]}
        captions: dict[str, list[str]] = {name: [] for name in names.values()}
        pairs = [(note["image_id"], str(note["caption"])) for note in content["annotations"]]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{source} is not in the layout of COCO captions ({type(error).__name__}: {error}): expected 'images' with "
            "'id' and 'file_name' and 'annotations' with 'image_id' and 'caption'"
        ) from None
    for number, caption in pairs:
        if number not in names:
            raise InputError(f"{source} has a caption for the picture {number}, which its 'images' do not list")
        captions[names[number]].append(caption)
    return _caption_set(root, split, source, folder, captions)


# ---- Flickr8k ----


def _open_flickr(root: Path, source: Path, split: Split, val_fraction: float, seed: int) -> CaptionSet:
    folder = _first_folder([root / name for name in _FLICKR_FOLDERS], str(source))
    captions: dict[str, list[str]] = {}
    for name, caption in _table(source) if source.name == "captions.txt" else _token_lines(source):
        captions.setdefault(name, []).append(caption)
    files = {part: sorted(source.parent.glob(f"*.{part}Images.txt")) for part in ("train", "test")}
    if files["train"] and files["test"]:
        names = listed_names(files[split][0], files["test" if split == "train" else "train"][0])
        source_of_names = files[split][0]
        for name in names:
            if name not in captions:
                raise InputError(f"{source_of_names} names the picture '{name}', for which {source} has no caption")
    elif files["train"] or files["test"]:
        alone, lacking = ("train", "test") if files["train"] else ("test", "train")
        raise InputError(f"{files[alone][0]} has no counterpart: expected a *.{lacking}Images.txt beside it")
    else:
        source_of_names, names = source, names_by_hash(captions, split, val_fraction, seed)
    return _caption_set(root, split, source_of_names, folder, {name: captions[name] for name in names})


def _token_lines(source: Path) -> Iterable[tuple[str, str]]:
    for number, line in enumerate(read_text(source).splitlines(), 1):
        name, tab, caption = line.partition("\t")
        if not tab or "#" not in name:
            raise InputError(f"line {number} of {source} is '{line[:60]}': expected NAME#NUMBER, a tab and a caption")
        yield name.rpartition("#")[0], caption


def _table(source: Path) -> Iterable[tuple[str, str]]:
    rows: Any = csv.reader(io.StringIO(read_text(source), newline=""), strict=True)
    try:
        if next(rows, None) != ["image", "caption"]:
            raise InputError(f"{source} does not start with 'image,caption': expected that line, then one a caption")
        for row in rows:
            if len(row) != 2:
                raise InputError(f"line {rows.line_num} of {source} has {len(row)} fields: expected image,caption")
            yield row[0], row[1]
    except csv.Error as error:
        raise InputError(f"line {rows.line_num} of {source} is no row of a table: {error}") from None
