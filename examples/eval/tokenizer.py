"""Text to pieces: a SentencePiece model, trained on the captions at hand."""

import io
import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import sentencepiece

PAD, END, UNKNOWN = 0, 1, 2
_SENTENCES = 1_000_000  # read of a corpus, at most


class Tokenizer:
  """The pieces of one trained model.

  Attributes:
    vocabulary: how many pieces there are.
  """

  def __init__(self, model: bytes):
    """Args:
    model: as `train` returns it.
    """
    self.model = model
    self._pieces = sentencepiece.SentencePieceProcessor(model_proto=model)
    self.vocabulary = self._pieces.vocab_size()

  def __call__(self, texts: Sequence[str], tokens: int) -> np.ndarray:
    """Returns the pieces of each text and an end, cut or padded to `tokens`.

    Args:
      texts: to encode.
      tokens: `T`.

    Returns:
      `[N, T]` int32.
    """
    out = np.full((len(texts), tokens), PAD, np.int32)
    for row, text in zip(out, texts, strict=True):
      pieces = [*self._pieces.encode(text)[: tokens - 1], END]
      row[: len(pieces)] = pieces
    return out

  def text(self, pieces: Sequence[int]) -> str:
    """Returns what some pieces say, without padding and ends."""
    return self._pieces.decode([int(p) for p in pieces if p > UNKNOWN])


def train(texts: Iterable[str], vocabulary: int) -> Tokenizer:
  """Trains a unigram model on sentences, in lower case.

  The paper trains it on English C4 and has 16 tokens a text.

  Args:
    texts: at most a million are read.
    vocabulary: pieces at most; fewer where the texts do not have them.

  Raises:
    ValueError: if there is no text, or SentencePiece refuses.
  """
  found = io.BytesIO()
  sentences = iter(texts)
  first = next(sentences, None)
  if first is None:
    raise ValueError("a tokenizer needs at least one text, got none")
  try:
    sentencepiece.SentencePieceTrainer.train(
      sentence_iterator=itertools.islice(
        itertools.chain([first], sentences), _SENTENCES
      ),
      model_writer=found,
      vocab_size=vocabulary,
      hard_vocab_limit=False,
      character_coverage=1.0,
      normalization_rule_name="nmt_nfkc_cf",
      pad_id=PAD,
      eos_id=END,
      unk_id=UNKNOWN,
      bos_id=-1,
      num_threads=1,
      minloglevel=2,
    )
  except RuntimeError as error:
    raise ValueError(f"SentencePiece cannot train: {error}") from error
  return Tokenizer(found.getvalue())


def load(path: Path) -> Tokenizer:
  """Returns the tokenizer in a file."""
  return Tokenizer(path.read_bytes())
