import pytest

from examples.data.example_proto import decode, encode

EXAMPLE = {"image": b"abc", "label": [3, 300], "id": "x"}
# Written out by hand from the wire format: Example.features = 1, map entries
# are (key = 1, value = 2), Feature.bytes_list = 1 and int64_list = 3, their
# value = 1; numbers are packed.
ENTRIES = [
  b"\x12\x0a\x09file_name" + b"\x12\x05" + b"\x0a\x03" + b"\x0a\x01x",
  b"\x10\x0a\x05image" + b"\x12\x07" + b"\x0a\x05" + b"\x0a\x03abc",
  b"\x10\x0a\x05label" + b"\x12\x07" + b"\x1a\x05" + b"\x0a\x03\x03\xac\x02",
]


def wire(*entries):
  features = b"".join(b"\x0a" + entry for entry in entries)
  return b"\x0a" + bytes([len(features)]) + features


def test_the_bytes_are_those_of_a_tf_train_example():
  # A length is that of what follows it.
  entries = [bytes([len(e) - 1]) + e[1:] for e in ENTRIES]
  assert encode(EXAMPLE) == wire(*entries)
  assert decode(wire(*reversed(entries)), "other") == EXAMPLE


def test_names_of_the_imagenet_scripts_are_read_too():
  image = b"\x19\x0a\x0dimage/encoded" + b"\x12\x08\x0a\x06\x0a\x04abcd"
  label = b"\x1b\x0a\x11image/class/label" + b"\x12\x06\x1a\x04\x0a\x02\x03\x05"
  entries = [bytes([len(e) - 1]) + e[1:] for e in (image, label)]
  assert decode(wire(*entries), "shard record 7") == {
    "image": b"abcd",
    "label": [3, 5],
    "id": "shard record 7",
  }


def test_what_is_missing_is_said():
  image = bytes([len(ENTRIES[1]) - 1]) + ENTRIES[1][1:]
  with pytest.raises(ValueError, match=r"and a label, .*; it has image$"):
    decode(wire(image), "x")
  with pytest.raises(ValueError, match="it has nothing"):
    decode(b"", "x")
  with pytest.raises(ValueError, match=r"not a tf\.train\.Example"):
    decode(b"\xff\xff", "x")
