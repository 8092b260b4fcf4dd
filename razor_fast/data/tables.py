"""Tables that list image files with captions: csv and tsv, and the metadata files of image folders.

May call: sources, images, extras.
"""

from __future__ import annotations

import csv
import difflib
import json
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

from ..errors import DataError
from .images import decode_image
from .reports import DEFAULT_MAX_BAD_SHARE
from .samples import Sample
from .sources import (
    CAPTION_NAMES,
    DEFAULT_TEMPLATES,
    LABEL_NAMES,
    Bad,
    Source,
    caption_from_label,
    check_templates,
    clean_caption,
    label_name,
)

IMAGE_NAMES = ("filepath", "file_name", "filename", "path", "image", "image_path")


class TableSource(Source):
    """Rows of a csv or tsv (open_clip's convention: columns filepath and title), or of a jsonl, in their order.

    image_key, caption_key, label_key: column names; None tries the usual ones (filepath, file_name, ... / title,
    caption, text / label, class, ...). Without a caption column, captions are made from the labels by `templates`.
    Relative paths start at `root`, by default the folder of the table. separator: None takes the one, of comma, tab and
    semicolon, that the header uses. name: prefix of the keys.

    Raises DataError for a missing table or column.
    """

    format = "csv"

    def __init__(
        self,
        path,
        *,
        image_key: str | None = None,
        caption_key: str | None = None,
        label_key: str | None = None,
        separator: str | None = None,
        root=None,
        class_names: Sequence[str] | None = None,
        templates: Sequence[str] | str = DEFAULT_TEMPLATES,
        name: str | None = None,
        max_bad_share: float = DEFAULT_MAX_BAD_SHARE,
    ):
        self.path = Path(path).expanduser()
        if not self.path.is_file():
            raise DataError(f"{path}: no such table (csv, tsv or jsonl)")
        super().__init__(name or self.path.name, max_bad_share)
        self.separator = separator
        self.root = self.path.parent if root is None else Path(root).expanduser()
        self.class_names, self.templates = class_names, check_templates(templates)
        columns = self._columns()
        self.image_key = pick_column(image_key, IMAGE_NAMES, columns, "image", self.name)
        self.label_key = pick_column(label_key, LABEL_NAMES, columns, "label", self.name, required=False)
        self.caption_key = pick_column(
            caption_key, CAPTION_NAMES, columns, "caption", self.name, required=self.label_key is None
        )

    def candidates(self) -> Iterator[Sample | Bad]:
        for number, row in self._rows():
            if isinstance(row, str):
                yield Bad(f"{self.name}:{number}", row)
                continue
            file = clean_caption(row.get(self.image_key))
            key = f"{self.name}:{number}" + (f"/{file}" if file else "")
            if not file:
                yield Bad(key, f"no file in column {self.image_key!r}")
                continue
            try:
                label = row.get(self.label_key) if self.label_key else None
                if isinstance(label, str) and self.class_names is None:
                    label = label.strip() or None  # a table cannot tell the class "7" from the number 7
                else:
                    label = label_name(label, self.class_names, key)
                caption = clean_caption(row.get(self.caption_key)) if self.caption_key else ""
                if not self.caption_key and label is not None:
                    caption = caption_from_label(label, self.templates, key)
            except DataError as error:
                yield Bad(key, str(error))
                continue
            yield Sample(None, caption, label, key, load=partial(decode_image, self.root / file))

    def _columns(self) -> list[str]:
        if self.path.suffix.lower() == ".jsonl":
            columns: dict[str, None] = {}
            for number, row in self._rows():
                if isinstance(row, dict):
                    columns.update(dict.fromkeys(row))
                if number >= 100 and columns:
                    break
            return list(columns)
        try:
            with self._open() as stream:
                header = stream.readline()
        except UnicodeDecodeError as error:
            raise DataError(f"{self.name}: not a readable UTF-8 table ({error})") from error
        if self.separator is None:
            counts = {mark: header.count(mark) for mark in (",", "\t", ";")}
            self.separator = max(counts, key=counts.get)
        columns = next(csv.reader([header], delimiter=self.separator), [])
        return [column.strip() for column in columns]

    def _open(self):
        # utf-8-sig: spreadsheets write a mark at the start that would become part of the first column's name
        return open(self.path, encoding="utf-8-sig", errors="strict", newline="")

    def _rows(self) -> Iterator[tuple[int, dict | str]]:
        """(line number, row), with a message in place of a row that cannot be parsed."""
        try:
            with self._open() as stream:
                if self.path.suffix.lower() == ".jsonl":
                    yield from _json_rows(stream)
                    return
                csv.field_size_limit(max(csv.field_size_limit(), 2**24))
                reader = csv.DictReader(stream, delimiter=self.separator)
                reader.fieldnames = [column.strip() for column in reader.fieldnames or ()]
                for row in reader:
                    yield reader.line_num, row
        except (csv.Error, UnicodeDecodeError) as error:
            raise DataError(f"{self.name}: not a readable UTF-8 table ({error})") from error


def pick_column(
    given: str | None, known: Sequence[str], columns: Iterable[str], what: str, where: str, required: bool = True
) -> str | None:
    """The column to use: the one given, else the first known one present. DataError when it is not there."""
    columns = list(columns)
    if given is not None:
        if given in columns:
            return given
        near = difflib.get_close_matches(given, columns, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise DataError(f"{where}: no {what} column {given!r}; it has {', '.join(map(repr, columns)) or 'none'}{hint}")
    lowered = {column.lower(): column for column in reversed(columns)}
    for name in known:
        if name in lowered:
            return lowered[name]
    if required:
        raise DataError(
            f"{where}: no {what} column among {', '.join(map(repr, columns)) or 'no columns'}; "
            f"known names are {', '.join(known)}, or pass {what}_key"
        )
    return None


def _json_rows(stream) -> Iterator[tuple[int, dict | str]]:
    for number, line in enumerate(stream, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            yield number, f"not valid JSON ({error})"
            continue
        yield number, row if isinstance(row, dict) else "not a JSON object"
