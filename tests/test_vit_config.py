import dataclasses

import pytest

from models.vit_config import VARIANTS, ViTConfig, get_config

SMALL = {"width": 12, "depth": 2, "mlp": 20, "heads": 3, "image": 8, "patch": 4}


@pytest.mark.parametrize(
  ("name", "width", "depth", "mlp", "heads"),
  [
    ("vit_s", 384, 12, 1536, 6),
    ("vit_b", 768, 12, 3072, 12),
    ("vit_l", 1024, 24, 4096, 16),
    ("vit_g", 1408, 40, 6144, 16),
    ("vit_G", 1664, 48, 8192, 16),
    ("vit_e", 1792, 56, 15360, 16),
    ("vit_22b", 6144, 48, 24576, 48),
  ],
)
def test_variants_have_the_published_sizes(name, width, depth, mlp, heads):
  cfg = get_config(name)
  sizes = (cfg.width, cfg.depth, cfg.mlp, cfg.heads)
  assert sizes == (width, depth, mlp, heads)
  assert cfg.classes == 29_593


def test_every_variant_has_the_block_of_its_paper():
  for name, cfg in VARIANTS.items():
    is_new = name in ("vit_tiny", "vit_22b")
    assert cfg.parallel is cfg.qk_norm is is_new, name
    assert cfg.attention_bias is cfg.norm_bias is not is_new, name


def test_derived_sizes():
  cfg = ViTConfig(**SMALL, channels=2)
  assert (cfg.head_dim, cfg.tokens, cfg.patch_dim) == (4, 4, 32)
  assert get_config("vit_22b").tokens == 256  # said in the paper
  assert get_config("vit_b").tokens == 196


def test_get_config_replaces_fields_and_leaves_the_table_alone():
  cfg = get_config("vit_b", classes=10, image=32)
  assert (cfg.classes, cfg.tokens, cfg.width) == (10, 4, 768)
  assert get_config("vit_b").classes == 29_593


def test_config_is_frozen_and_hashable():
  cfg = get_config("vit_tiny")
  assert {cfg: 1}[get_config("vit_tiny")] == 1
  with pytest.raises(dataclasses.FrozenInstanceError):
    cfg.width = 1


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"heads": 5}, "width=12 is not a multiple of heads=5"),
    ({"image": 3}, "at least one patch: image=3, patch=4"),
    ({"cls": True}, "pool and cls must not both be true"),
    ({"gelu": "quick"}, "gelu must be 'tanh' or 'exact', got 'quick'"),
    ({"depth": 0}, "depth must be at least 1, got 0"),
    ({"heads": 0}, "heads must be at least 1, got 0"),
    ({"patch": -4}, "patch must be at least 1, got -4"),
    ({"classes": -1}, "classes must be at least 0, got -1"),
  ],
)
def test_impossible_sizes_are_refused(changes, message):
  with pytest.raises(ValueError, match=message):
    ViTConfig(**{**SMALL, **changes})


@pytest.mark.parametrize(
  ("image", "side"), [(384, 27), (288, 20), (504, 36), (518, 37), (560, 40)]
)
def test_pixels_that_fill_no_patch_make_no_token(image, side):
  cfg = get_config("vit_22b", image=image)
  assert (cfg.grid, cfg.tokens) == ((side, side), side**2)
  with_cls = dataclasses.replace(cfg, pool=False, cls=True)
  assert with_cls.tokens == side**2 + 1


def test_a_changed_variant_is_checked_too():
  with pytest.raises(ValueError, match="image=13, patch=14"):
    get_config("vit_22b", image=13)


def test_unknown_variant_lists_the_known_ones():
  with pytest.raises(ValueError, match=r"vit_tiny, .*vit_22b, got 'vit_huge'"):
    get_config("vit_huge")
