"""The page the annotators find in every batch."""

from collections.abc import Sequence

_TEMPLATE = """\
# {name}: {count} images to label

Classes, by number: {classes}.

1. Open the images. They are in `images/`, or `coco.json` and `manifest.jsonl` say their s3:// addresses.
   `preannotations/` holds boxes a model has drawn, as COCO, YOLO and Pascal VOC. Correct them, or start from nothing
   with `coco.json`. `manifest.jsonl` says of each image why it was picked.
2. Draw a box around **every** object of these classes. A box on an image that is not finished teaches the model wrong.
3. Put your files into `inbox/{name}/`, next to `outbox/`, in any of the three layouts. Names of images stay as they
   are, the image id will do. Partial work is welcome: what is there is taken every night, and a file may be replaced.

## When an image counts as finished

| you return | finished are |
| --- | --- |
| YOLO, one `.txt` an image | the images that have a file. An empty file says: nothing is there. |
| Pascal VOC, one `.xml` an image | the images that have a file. One without objects says: nothing is there. |
| COCO, one `.json` for many | images whose boxes differ from the pre-drawn ones, and images marked as reviewed |

Files of `preannotations/` that come back unchanged count as not looked at. Were the pre-drawn boxes right, or is there
nothing in an image of a COCO file, then mark it: `"reviewed": true` on the image in the COCO file, or a line in a file
`reviewed.csv`:

```
image,status,annotator,seconds_spent
{example},,anna,41
```

Only the column `image` is needed; `*` in it means every image. `status` may be `empty` or `skipped` (unusable image).
YOLO files need your `data.yaml` or `classes.txt` beside them if your class numbers are others than above. Two people on
one batch: put their names into `annotator` (on the images of a COCO file, or in `reviewed.csv`).

Whatever cannot be understood is set aside and named to the people who run the campaign; nothing is deleted.
"""


def render_readme(name: str, classes: Sequence[str], count: int) -> str:
    """Markdown of one batch.

    Args:
        name: of the batch's folder.
        classes: class names in the order of their numbers.
        count: images in it.
    """
    numbered = ", ".join(f"{number} {class_name}" for number, class_name in enumerate(classes))
    return _TEMPLATE.format(name=name, count=count, classes=numbered, example="0123456789abcdef")
