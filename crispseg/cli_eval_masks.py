"""The command eval-masks: accuracy of coarse and refined masks against exact ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, Optional

import typer

from crispseg.cli import JSON, LIMIT, RATIO, REPORT, app
from crispseg.errors import InputError

PHOTOS = typer.Argument(..., metavar="IMAGES", help="folder of photos, or one", show_default=False)
MASKS = typer.Argument(..., metavar="MASKS", help="their coarse masks: grey pictures", show_default=False)
TRUTH = typer.Argument(..., metavar="GT", help="their exact masks", show_default=False)
REFINED = typer.Option(
    None, "--refined", help="their refined masks: the folder masks of crispseg refine", show_default=False
)
PICTURES = typer.Option(None, "-o", "--out", help="folder for pictures side by side", show_default=False)
THRESHOLD = typer.Option(
    128, "--threshold", min=1, max=255, help="lowest grey level that is foreground (CRM's script: 129)"
)
EXIF = typer.Option(False, "--ignore-exif", help="pictures side by side: photos as stored, not turned upright")


@app.command("eval-masks")
def eval_masks(
    context: typer.Context,
    images: Path = PHOTOS,
    masks: Path = MASKS,
    gt: Path = TRUTH,
    refined: Optional[Path] = REFINED,
    out: Optional[Path] = PICTURES,
    threshold: int = THRESHOLD,
    boundary_ratio: float = RATIO,
    ignore_exif: bool = EXIF,
    limit: Optional[int] = LIMIT,
    report: Optional[Path] = REPORT,
    json: bool = JSON,
) -> None:
    """Measure IoU, mean boundary accuracy (mBA) and boundary IoU of coarse and refined masks.

    Example: crispseg eval-masks photos coarse exact --refined out/masks -o side-by-side
    """
    from crispseg.cli_output import execute
    from crispseg.cli_unused import refuse_unused

    if out is None:
        refuse_unused(context, {"ignore_exif": "expected -o with it, which draws photos, found none"})

    def work(progress):  # type: ignore[no-untyped-def]
        from crispseg.runtime.mask_accuracy import evaluate_masks
        from crispseg.runtime.mask_images import read_photo
        from crispseg.runtime.mask_pictures import side_by_side
        from crispseg.runtime.sinks import make_folder, write_png

        def picture(item: Any, seen: Dict[str, Any]) -> None:
            photo = read_photo(item.image, seen["truth"].shape, ignore_exif)
            write_png(out / (item.name + ".png"), side_by_side(photo, seen))  # type: ignore[operator]

        if out is not None:
            for place in (images, masks, gt, refined):
                if place is not None and out.resolve() == (place if place.is_dir() else place.parent).resolve():
                    raise InputError(f"--out {out}: holds what is to be measured; choose another folder")
            make_folder(out)
        return evaluate_masks(
            images,
            masks,
            gt,
            refined=refined,
            threshold=threshold,
            boundary_ratio=boundary_ratio,
            limit=limit,
            picture=picture if out is not None else None,
            progress=progress,
        )

    execute(work, json=json, title="measuring", report_file=report)
