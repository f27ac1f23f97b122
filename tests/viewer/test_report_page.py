"""The page says what the report says, is whole in itself, and runs nothing that a name smuggles in (V5)."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path
from urllib.parse import unquote

import pytest

from sparseg.errors import InputError
from sparseg.viewer.report_data import CaseRow, RunReport, inside, read_report
from sparseg.viewer.report_page import MAX_BYTES, NIIVUE, write_report_page
from viewer.report_folder import FAILED, SECONDS, write_case, write_run

NIIVUE_SHA256 = "47b896b77ec4a5be3ef1949c33ad393b6f45629921f326c279000bcf51bdb4af"
HOSTILE = "<img src=x onerror=alert(1)>\"'</script><script>alert(2)</script>&amp;\u2028"


class Page(HTMLParser):
    """What a browser would see."""

    def __init__(self, path: Path) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.text = ""
        self._inside = ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = tag
        if tag == "script":
            self.scripts.append((dict(attrs), ""))

    def handle_endtag(self, tag: str) -> None:  # noqa: ARG002
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.scripts[-1] = (self.scripts[-1][0], self.scripts[-1][1] + data)
        elif self._inside != "style":
            self.text += data + " "

    def all(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.tags if tag == name]

    @property
    def policy(self) -> dict[str, list[str]]:
        (meta,) = (m for m in self.all("meta") if m.get("http-equiv") == "Content-Security-Policy")
        words = [part.split() for part in str(meta["content"]).split(";")]
        return {first: rest for first, *rest in words}

    def data(self, name: str) -> dict:
        (text,) = (text for attributes, text in self.scripts if attributes.get("id") == name)
        return json.loads(text)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "out", [write_case(tmp_path / "out"), FAILED])


def test_the_page_says_what_was_run_and_found(run):
    page = Page(write_report_page(run))
    words = " ".join(page.text.split())
    for expected in (
        "1 of 2 cases done, 1 failed",
        "sparseg 0.1.0, torch 2.13.0, python 3.11.7",
        "cpu, 1 thread(s)",
        "models/tiny",
        "ab" * 32,
        "tokens per window: 64; kept after stage 1 to 3: 32 (50 %), 16 (25 %), 8 (12 %)",
        "tokens per window: 64; kept after stage 1 to 3: 48 (75 %), 40 (62 %), 36 (56 %)",
        'largest component: ["liver"]',
        "liver 1.08 ml",
        "spleen 0.101 ml",
        "not found: gallbladder",
        "truncated broken.nii.gz: the file must be complete; received 12 bytes",
        "6.2, 4.5, 26.2 0.39 may be cut off",
        "Planes through the largest structure, at (",
        "thinned",
        "Not a medical device; for research.",
    ):
        assert expected in words, expected
    assert "nonfinite" not in words
    assert "Case patient" not in words
    assert re.search(r"patient ok .* 18 7 10\.0", words)


def test_shares_of_time_add_up(run):
    page = Page(write_report_page(run))
    bars = [attributes for attributes in page.all("i") if "width:" in str(attributes.get("style"))]
    shares = [float(re.search(r"width:([\d.]+)%", str(bar["style"]))[1]) for bar in bars]
    names = [str(bar["title"]).split()[0] for bar in bars]
    steps = ["read", "prepare", "encode", "assemble", "decode", "stitch", "finish", "statistics", "write"]
    # One bar over all cases, one of the only case.
    assert names == steps * 2
    # The windows are not counted beside their parts: 10 s in all.
    assert shares == pytest.approx([10 * SECONDS[name] for name in steps] * 2, abs=0.01)


def test_time_that_is_no_named_part_is_counted():
    assert CaseRow(case="a", seconds={"read": 1, "windows": 2, "queue": 3}).steps() == {"read": 1, "other": 5}
    parts = {"windows": 2.0, "encode": 0.5, "stitch": 1.5}
    assert CaseRow(case="a", seconds=parts).steps() == {"encode": 0.5, "stitch": 1.5}


def test_only_the_scripts_of_the_page_may_run(run):
    page = Page(write_report_page(run))
    code = [text for attributes, text in page.scripts if attributes.get("type") != "application/json"]
    hashes = [
        f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" for text in code
    ]
    assert len(code) == 2
    policy = page.policy
    assert policy["default-src"] == ["'none'"]
    assert policy["script-src"] == hashes
    assert policy["img-src"] == ["data:", "blob:"]
    assert policy["connect-src"] == ["'self'"]
    assert all(attributes.get("src") is None for attributes in page.all("script"))
    assert all(str(image["src"]).startswith("data:image/png;base64,") for image in page.all("img"))
    assert [link["href"] for link in page.all("link")] == ["data:,"]


def test_hostile_names_stay_text(tmp_path):
    out = tmp_path / "out"
    name = "<img src=x onerror=alert(1)>"
    row = write_case(out, name)
    row |= {"volumes_ml": {HOSTILE: 2.0, "x": 0.0, HOSTILE + "2": 0.0}}
    failed = FAILED | {"case": "'><svg onload=alert(3)>", "code": HOSTILE, "message": HOSTILE}
    model = {"model": HOSTILE, "weights_sha256": HOSTILE}
    changes = {
        "labels": {"0": "background", "1": HOSTILE},
        "models": [model, model],
        "created": HOSTILE,
        "versions": {HOSTILE: HOSTILE},
        "device": HOSTILE,
        "mirror": [HOSTILE],
        "cleanup": {HOSTILE: HOSTILE},
    }
    write_run(out, [row, failed], **changes)
    statistics = json.loads((out / "statistics.json").read_text())
    statistics["cases"][name] = {HOSTILE: statistics["cases"][name]["liver"]}
    (out / "statistics.json").write_text(json.dumps(statistics))
    page = Page(write_report_page(out))
    assert {tag for tag, _ in page.tags} <= KNOWN_TAGS
    assert [at for _, attributes in page.tags for at in attributes if at.startswith("on")] == []
    assert all(str(image["src"]).startswith("data:image/png") for image in page.all("img"))
    assert len(page.all("img")) == 9
    assert len(page.all("script")) == 4
    assert page.text.count(HOSTILE) >= 9
    assert page.data("report-data")["labels"][1]["name"] == HOSTILE
    assert page.data("report-data")["cases"][0]["name"] == name


KNOWN_TAGS = set(
    """html head meta link title style body header h1 h2 h3 h4 p strong main table thead tbody tr th td br
    code div i span b a section label select option input fieldset legend button canvas details summary figure
    figcaption img footer script""".split()  # noqa: SIM905
)


def test_volumes_are_in_the_page(run):
    page = Page(write_report_page(run))
    volumes = page.data("volumes-0")
    assert sorted(volumes) == ["confidence", "image", "labels", "tokens"]
    for kind, text in volumes.items():
        assert base64.b64decode(text) == (run / "report/patient" / f"{kind}.nii.gz").read_bytes()
    data = page.data("report-data")
    assert data["cases"] == [{"number": 0, "name": "patient", "script": None, "output": "patient.nii.gz"}]
    assert data["labels"][1] == {"id": 1, "name": "liver", "colour": [255, 0, 0]}
    assert len(data["stages"]) == 4
    # All in one file of a few megabytes, and nothing beside it.
    assert not (run / "report/patient.js").exists()
    assert (run / "report.html").stat().st_size < 4 * 2**20 < MAX_BYTES


def test_a_large_report_keeps_its_volumes_beside_the_page(tmp_path):
    out = tmp_path / "out"
    name = 'Müller #1 50% "a"'
    write_run(out, [write_case(out, name), write_case(out, "b")])
    page = Page(write_report_page(out, max_bytes=1000))
    assert [case["script"] for case in page.data("report-data")["cases"]] == [
        f"report/{name}.js",
        "report/b.js",
    ]
    text = (out / "report" / f"{name}.js").read_text()
    called = re.fullmatch(r"sparsegVolumes\((.*?), (\{.*\})\);\n", text)
    assert json.loads(called[1]) == name
    image = base64.b64decode(json.loads(called[2])["image"])
    assert image == (out / "report" / name / "image.nii.gz").read_bytes()
    sources = [str(image["src"]) for image in page.all("img")]
    assert len(sources) == 18
    assert all((out / unquote(source)).read_bytes().startswith(b"\x89PNG") for source in sources)
    assert page.policy["script-src"][2:] == ["'self'", "file:"]
    assert page.policy["img-src"] == ["data:", "blob:", "'self'", "file:"]
    assert not any(attributes.get("id", "").startswith("volumes-") for attributes, _ in page.scripts)


def test_without_previews_there_is_no_viewer_and_no_script(tmp_path):
    out = tmp_path / "out"
    row = write_case(out) | {"previews": {}}
    page = Page(write_report_page(write_run(out, [row, FAILED])))
    assert page.scripts == []
    assert page.policy["script-src"] == ["'none'"]
    assert "No pictures: the previews of this case were not kept" in page.text
    assert not page.all("canvas")


def test_a_run_without_success_has_a_page(tmp_path):
    out = write_run(tmp_path / "out", [FAILED])
    (out / "statistics.json").unlink()
    page = Page(write_report_page(out))
    assert "0 of 1 cases done, 1 failed" in page.text
    assert "Where the time went" not in page.text
    assert "Case by case" not in page.text


def test_damaged_previews_are_told(run):
    (run / "report/patient/tokens.nii.gz").write_bytes(b"no")
    page = Page(write_report_page(run))
    assert "The tokens preview cannot be shown" in page.text
    assert len(page.all("img")) == 6
    (run / "report/patient/image.nii.gz").write_bytes(b"no")
    page = Page(write_report_page(run))
    assert "The image preview cannot be shown" in page.text
    assert len(page.all("img")) == 0
    assert page.scripts == []


def test_previews_outside_the_folder_are_not_read(tmp_path):
    out = tmp_path / "out"
    row = write_case(out)
    secret = tmp_path / "secret.nii.gz"
    secret.write_bytes((out / "report/patient/image.nii.gz").read_bytes())
    (out / "link.nii.gz").symlink_to(secret)
    for name in ("../secret.nii.gz", str(secret), "link.nii.gz", "..\\secret.nii.gz", "report", "a\0b"):
        assert inside(out, name) is None, name
        row["previews"] = {"image": name}
        page = Page(write_report_page(write_run(out, [row])))
        assert page.scripts == []
    assert inside(out, "report/patient/image.nii.gz") is not None


@pytest.mark.parametrize("name", ["../x", "a/b", "a\\b", "..", ".", "", "a\0b"])
def test_a_case_name_cannot_lead_elsewhere(tmp_path, name):
    out = write_run(tmp_path / "out", [FAILED | {"case": name}])
    with pytest.raises(InputError, match="able to name a file") as error:
        write_report_page(out)
    assert error.value.code == "report-damaged"


def test_a_folder_without_report_is_named(tmp_path):
    with pytest.raises(InputError, match=r"no report\.json") as error:
        write_report_page(tmp_path)
    assert error.value.code == "report-missing"


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"cases": 3}', b"\xff\xfe", b'{"cases": [{}]}'])
def test_damaged_reports_are_refused(tmp_path, content):
    (tmp_path / "report.json").write_bytes(content)
    with pytest.raises(InputError) as error:
        write_report_page(tmp_path)
    assert error.value.code == "report-damaged"
    assert not (tmp_path / "report.html").exists()


def test_reports_of_other_versions_are_read(tmp_path):
    (tmp_path / "report.json").write_text('{"schema": 2, "cases": [], "labels": {"3": "x"}}')
    report, statistics = read_report(tmp_path)
    assert report == RunReport(labels={3: "x"})
    assert statistics.cases == {}
    assert "0 of 0 cases done" in Page(write_report_page(tmp_path)).text


def test_token_counts_of_several_models_are_those_of_the_first():
    models = [{"model": "a", "token_counts": [8, 4, 2]}, {"model": "b", "token_counts": [8, 4]}]
    assert RunReport.model_validate({"models": models, "token_counts": None}).num_stages == 2
    assert RunReport(token_counts=[8]).num_stages == 0


def test_niivue_is_the_published_file():
    assets = files("sparseg.viewer") / "assets"
    content = (assets / NIIVUE).read_bytes()
    assert hashlib.sha256(content).hexdigest() == NIIVUE_SHA256
    # It stands inside a script element.
    assert not re.search(rb"</script|<!--|\r", content, re.IGNORECASE)
    licence = (assets / "niivue-LICENSE.txt").read_text()
    assert "BSD 2-Clause License" in licence
    assert "Copyright (c) 2021, Niivue" in licence


def test_writing_twice_gives_the_same_page(run):
    first = write_report_page(run).read_bytes()
    assert write_report_page(run).read_bytes() == first
