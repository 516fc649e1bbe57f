"""The 16 categories of model-vs-human, by their ImageNet classes.

Which of the 1,000 ILSVRC-2012 classes, in WordNet order, belong to a category
of Geirhos et al. 2018 (bethgelab/model-vs-human `helper/human_categories.py`,
MIT).
"""


def _classes(ranges: str) -> list[int]:
  """Expands "1 5-7" to [1, 5, 6, 7]."""
  found = []
  for part in ranges.split():
    first, _, last = part.partition("-")
    found += range(int(first), int(last or first) + 1)
  return found


SIXTEEN_CLASSES: dict[str, list[int]] = {
  name: _classes(ranges)
  for name, ranges in {
    "airplane": "404",
    "bear": "294-297",
    "bicycle": "444 671",
    "bird": ("8 10-16 18-20 22-24 80-83 87-96 98-100 127-133 135-145"),
    "boat": "472 554 625 814 914",
    "bottle": "440 720 737 898-899 901 907",
    "car": "436 511 817",
    "cat": "281-286",
    "chair": "423 559 765 857",
    "clock": "409 530 892",
    "dog": (
      "152-191 193-203 205-226 228-241 243-250 252-257 259 261-263 265-268"
    ),
    "elephant": "385-386",
    "keyboard": "508 878",
    "knife": "499",
    "oven": "766",
    "truck": "555 569 656 675 717 734 864 867",
  }.items()
}
