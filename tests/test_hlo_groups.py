import pytest

from collective_mm import hlo_groups

FORMS = [
  ("{{0,1},{2,3}}", [[0, 1], [2, 3]]),
  ("[2,4]<=[8]", [[0, 1, 2, 3], [4, 5, 6, 7]]),
  ("[4,2]<=[2,4]T(1,0)", [[0, 4], [1, 5], [2, 6], [3, 7]]),
  ("mesh['data'=2,'model'=4] {'model'}", [[0, 1, 2, 3], [4, 5, 6, 7]]),
  ("mesh['data'=2,'model'=4] {'data'}", [[0, 4], [1, 5], [2, 6], [3, 7]]),
  ("mesh['a'=2,'b'=2] {'b','a'}", [[0, 2, 1, 3]]),
  ("mesh['a'=2,'b'=2], device_ids=(0,2,1,3) {'b'}", [[0, 2], [1, 3]]),
  # The order of the devices is an iota of [2, 2], transposed: 0, 2, 1, 3.
  ("mesh['a'=2,'b'=2], device_ids=([2,2]T(1,0)) {'b'}", [[0, 2], [1, 3]]),
  # Two parts of an axis of four: the inner one, and the outer one.
  ("mesh['a'=4,'b'=2] {'a':(2)2}", [[0, 2], [1, 3], [4, 6], [5, 7]]),
  ("mesh['a'=4,'b'=2] {'a':(1)2}", [[0, 4], [1, 5], [2, 6], [3, 7]]),
]


@pytest.mark.parametrize("text, groups", FORMS)
def test_groups_in_every_form(text, groups):
  assert hlo_groups.parse_groups(text).tolist() == groups


@pytest.mark.parametrize("text, groups", [*FORMS, ("{}", None)])
def test_groups_are_found_among_attributes(text, groups):
  found = hlo_groups.GROUPS.search(
    f"channel_id=1, replica_groups={text}, dimensions={{0}}, metadata={{}}"
  )
  assert found[1] == text


def test_no_groups_are_all_devices():
  assert hlo_groups.parse_groups("{}") is None


def test_groups_of_several_sizes_are_refused():
  with pytest.raises(ValueError, match="must be of one size"):
    hlo_groups.parse_groups("{{0,1},{2}}")


def test_an_unknown_form_is_refused():
  with pytest.raises(ValueError, match="known form, got '<0,1>'"):
    hlo_groups.parse_groups("<0,1>")
