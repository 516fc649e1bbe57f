import pytest

from examples.data.hierarchy import flatten, read


def test_a_leaf_has_all_its_ancestors_once():
  parents = {
    "poodle": ["dog", "companion"],
    "dog": ["mammal"],
    "companion": ["mammal"],
    "mammal": ["animal"],
    "oak": ["plant"],
  }
  classes, labels = flatten(["poodle", "dog", "rock"], parents)
  assert classes == ("poodle", "dog", "rock", "animal", "companion", "mammal")
  assert labels == {"poodle": [0, 1, 3, 4, 5], "dog": [1, 3, 5], "rock": [2]}


def test_a_class_is_not_its_own_ancestor():
  with pytest.raises(ValueError, match=r"own ancestor: (cat|pet) -> "):
    flatten(["cat"], {"cat": ["pet"], "pet": ["cat"]})


def test_no_file_is_no_hierarchy(tmp_path):
  assert read(tmp_path) == {}


def test_lines_of_a_csv_are_edges(tmp_path):
  (tmp_path / "hierarchy.csv").write_text("cat,pet\ncat, mammal\ndog,pet\n")
  assert read(tmp_path) == {"cat": ["pet", "mammal"], "dog": ["pet"]}


@pytest.mark.parametrize(
  ("name", "text", "message"),
  [
    ("hierarchy.csv", "cat,pet\ndog\n", "line 2 must be child,parent, got"),
    ("hierarchy.json", "[1]", "must be {"),
    ("hierarchy.json", '{"cat": [3]}', "must be {"),
    ("hierarchy.json", '{"cat": 3}', "must be {"),
    ("hierarchy.json", '{"cat"', "must be {"),
  ],
)
def test_other_files_are_refused(tmp_path, name, text, message):
  (tmp_path / name).write_text(text)
  with pytest.raises(ValueError, match=message):
    read(tmp_path)
