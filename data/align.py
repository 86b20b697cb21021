"""Finds and aligns the faces in a folder of photos: python data/align.py PHOTOS OUT

Writes each face as PNG of 112×112 pixels to OUT, in the same folders as in PHOTOS, so that a folder for each person
stays one. Of several faces in a photo it takes the largest near the middle; --all-faces takes all. OUT/report.csv
lists every photo; OUT/sheet.png shows what was taken and what should be checked. After an interruption the same command
goes on.
"""

import argparse
import os
import sys
from pathlib import Path

if not __package__:  # run as a script: put the repository first on the path, not this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from data.alignment.folder import LOG, align_folder, check_folders, list_photos
from data.alignment.report import find_notes, summarise, write_csv, write_sheet
from utils.errors import UserError, one_line, run_cli
from utils.filesystem import ensure_writable_folder, lock_folder
from utils.logs.logger import init_logging


def main() -> None:
    """Parses the command line and aligns the photos."""
    parser = argparse.ArgumentParser(description="Find and align the faces in a folder of photos.")
    parser.add_argument("photos", type=Path, metavar="PHOTOS", help="a folder of photos, with or without subfolders")
    parser.add_argument("out", type=Path, metavar="OUT", help="the folder for the aligned faces and the report")
    parser.add_argument("--detector", type=Path, metavar="FILE", help="YuNet as ONNX file (default: BlazeFace)")
    parser.add_argument("--all-faces", action="store_true", help="write every face of a photo, as NAME-1.png, …")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="number of processes (%(default)s)")
    args = parser.parse_args()
    if args.workers < 1:
        raise UserError(f"--workers: should be at least 1, is {args.workers}")
    try:
        check_folders(args.photos, args.out)
        with lock_folder(ensure_writable_folder(args.out)):
            init_logging(args.out / LOG)
            photos = list_photos(args.photos, args.out)
            records = align_folder(args.photos, args.out, photos, args.detector, args.all_faces, args.workers)
            notes = find_notes(records)
            write_csv(args.out / "report.csv", records, notes)
            write_sheet(args.out / "sheet.png", args.photos, args.out, records, notes)
    except OSError as error:
        raise UserError(f"{error.filename or args.out}: {error.strerror or error}") from error
    print(*map(one_line, summarise(records, notes)), sep="\n")
    print(f"{one_line(args.out)}/report.csv lists every photo, {one_line(args.out)}/sheet.png shows what to look at")
    if not any(record.faces for record in records):
        raise UserError(f"{args.photos}: no face in any photo")


if __name__ == "__main__":
    run_cli(main)
