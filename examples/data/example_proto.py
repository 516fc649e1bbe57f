"""One labelled image as bytes: a `tf.train.Example`, without TensorFlow.

    "image"      bytes   the JPEG or PNG file
    "label"      int64   one or more
    "file_name"  bytes   the id

These are the names that TensorFlow Datasets writes. Read are also those of the
ImageNet scripts, "image/encoded", "image/class/label" and "image/filename".
"""

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

_IMAGE = ("image", "image/encoded")
_LABEL = ("label", "labels", "image/class/label")
_NAME = ("file_name", "id", "image/filename")


def encode(example: dict) -> bytes:
  """Returns the bytes of `{"image": bytes, "label": list[int], "id": str}`."""
  message = _Example()
  feature = message.features.feature
  feature["image"].bytes_list.value.append(example["image"])
  feature["label"].int64_list.value.extend(example["label"])
  feature["file_name"].bytes_list.value.append(example["id"].encode())
  return message.SerializeToString(deterministic=True)


def decode(data: bytes, name: str) -> dict:
  """Returns an example from its bytes.

  Args:
    data: of a `tf.train.Example`.
    name: its id if it carries none.

  Raises:
    ValueError: if the bytes are no such thing, or have no image or label.
  """
  message = _Example()
  try:
    message.ParseFromString(data)
  except DecodeError as error:
    raise ValueError("it is not a tf.train.Example") from error
  feature = message.features.feature
  image = _first(feature, _IMAGE).bytes_list.value
  label = _first(feature, _LABEL).int64_list.value
  if len(image) != 1 or not label:
    raise ValueError(
      f"it must have one image, {' or '.join(_IMAGE)}, and a label, "
      f"{' or '.join(_LABEL)}; it has {', '.join(sorted(feature)) or 'nothing'}"
    )
  names = _first(feature, _NAME).bytes_list.value
  return {
    "image": image[0],
    "label": list(label),
    "id": names[0].decode(errors="replace") if names else name,
  }


def _first(feature, names):
  """The first feature of `names` that is there, or an empty one."""
  # Asking a protobuf map for what it lacks would add it.
  return next((feature[n] for n in names if n in feature), _Feature())


def _messages():
  """Builds what tensorflow/core/example has in its two .proto files.

  In a pool of their own, so that TensorFlow can be imported beside them.
  """
  field = descriptor_pb2.FieldDescriptorProto
  file = descriptor_pb2.FileDescriptorProto(
    name="example.proto", package="tensorflow", syntax="proto3"
  )

  def message(name, fields, within=file.message_type):
    made = within.add(name=name)
    for number, (label, kind, type_name) in enumerate(fields, start=1):
      repeated = kind == "repeated"
      made.field.add(
        name=label,
        number=number,
        label=field.LABEL_REPEATED if repeated else field.LABEL_OPTIONAL,
        type=type_name if isinstance(type_name, int) else field.TYPE_MESSAGE,
        type_name=None if isinstance(type_name, int) else type_name,
        oneof_index=0 if kind == "oneof" else None,
      )
    return made

  for name, value in (
    ("BytesList", field.TYPE_BYTES),
    ("FloatList", field.TYPE_FLOAT),
    ("Int64List", field.TYPE_INT64),
  ):
    message(name, [("value", "repeated", value)])
  kinds = ("bytes", "float", "int64")
  one = message(
    "Feature",
    [
      (f"{k}_list", "oneof", f".tensorflow.{k.capitalize()}List") for k in kinds
    ],
  )
  one.oneof_decl.add(name="kind")
  many = message(
    "Features",
    [("feature", "repeated", ".tensorflow.Features.FeatureEntry")],
  )
  entry = message(
    "FeatureEntry",
    [
      ("key", "single", field.TYPE_STRING),
      ("value", "single", ".tensorflow.Feature"),
    ],
    many.nested_type,
  )
  entry.options.map_entry = True
  message("Example", [("features", "single", ".tensorflow.Features")])
  pool = descriptor_pool.DescriptorPool()
  pool.Add(file)
  return [
    message_factory.GetMessageClass(
      pool.FindMessageTypeByName(f"tensorflow.{name}")
    )
    for name in ("Example", "Feature")
  ]


_Example, _Feature = _messages()
