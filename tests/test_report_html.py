import html.parser
import re
import shutil
import subprocess

import pytest
import replays

from profiling.report_html import write_html

SUMMARY = {
  "model": "vit_22b",
  "topology": "v4:2x2x1",
  "mesh": {"data": 1, "model": 4},
  "batch": 4096,
  "layout": "tokens",
  "hbm_bytes": {
    "arguments": 7 << 30,
    "outputs": 7 << 30,
    "aliased": 7 << 30,
    "temporaries": 15 << 30,
    "code": 1 << 28,
    "peak": 22 << 30,
    "usable": 31 << 30,
  },
  "simulated": {"mfu": 0.567, "tokens_per_s_per_chip": 1234.5},
  "versions": {"jax": "0.10.2"},
  "command": "python -m profiling.aot --model vit_22b </script>",
}
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


class Page(html.parser.HTMLParser):
  """Tags that are open, what they load, and the text outside of scripts."""

  VOID = ("meta", "link")

  def __init__(self, text):
    super().__init__()
    self.open, self.loads, self.ids, self.text = [], [], [], ""
    self.feed(text)

  def handle_starttag(self, tag, attrs):
    attrs = dict(attrs)
    self.loads += [attrs[name] for name in ("src", "href") if name in attrs]
    self.ids += [attrs["id"]] if "id" in attrs else []
    if tag not in self.VOID:
      self.open.append(tag)

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    if self.open and self.open[-1] not in ("script", "style"):
      self.text += data


@pytest.fixture(scope="module")
def page(tmp_path_factory):
  path = tmp_path_factory.mktemp("report") / "report.html"
  write_html(replays.ring(), SUMMARY, path)
  return path


def test_the_page_is_whole_and_loads_nothing(page):
  parsed = Page(page.read_text(encoding="utf-8"))
  assert parsed.open == []
  assert parsed.loads == ["data:,"]  # no icon
  assert parsed.ids == ["timeline", "parts", "memory", "torus"]
  style = re.search(r"<style>(.*?)</style>", page.read_text(), re.DOTALL)[1]
  assert "url(" not in style and "@import" not in style


def test_what_the_page_says(page):
  text = Page(page.read_text(encoding="utf-8")).text
  replay = replays.ring()
  for words in (
    "vit_22b on v4:2x2x1, 4 devices",
    "simulated",
    f"{1e3 * replay.step_time_s:,.3f} ms",
    "56.7%",
    "1,234",
    "22.0 of 31.0",
    "Mesh 1 data x 4 model, 4,096 images a step, layout tokens.",
    "In this slice no dim wraps.",
    "Compiled with jax 0.10.2.",
    "jit(f)/ring/dot_general",
    SUMMARY["command"],
  ):
    assert words in text


def test_what_is_not_known_is_left_out(tmp_path):
  path = tmp_path / "report.html"
  write_html(replays.ring(), {}, path)
  parsed = Page(path.read_text(encoding="utf-8"))
  assert parsed.ids == ["timeline", "parts"]
  assert "Program on v4:2x2x1, 4 devices" in parsed.text
  assert "MFU" not in parsed.text and "None" not in parsed.text


def test_the_same_step_gives_the_same_bytes(page, tmp_path):
  write_html(replays.ring(), SUMMARY, tmp_path / "again.html")
  assert (tmp_path / "again.html").read_bytes() == page.read_bytes()


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_a_browser_draws_it_without_complaint(page, tmp_path):
  done = subprocess.run(
    [
      *(CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu"),
      *("--enable-logging=stderr", "--virtual-time-budget=5000"),
      *("--host-resolver-rules=MAP * ~NOTFOUND", "--dump-dom"),
      *(f"--user-data-dir={tmp_path}", f"file://{page}"),
    ],
    capture_output=True,
    text=True,
    timeout=120,
    check=True,
  )
  said = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
  assert said == []
  drawn = re.sub(r"<script.*?</script>", "", done.stdout, flags=re.DOTALL)
  assert drawn.count('class="main-svg"') >= 4
  # Two trips of two products, a wait and two transfers in four directions; the
  # loop and its repeats; two parts of the step; three kinds of memory.
  assert drawn.count('class="point"') == 2 * (2 + 1 + 8) + 2 + 2 + 3
  for words in ("link x+", "x 46", "wait: collective-permute", "usable"):
    assert words in drawn
