"""The report page in a browser: nothing is fetched, nothing foreign runs, all is where the page says."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from predict.grids import AXIS_ORDERS
from sparseg.viewer.report_page import write_report_page
from sparseg.volumes.geometry import voxel_to_world
from viewer.report_folder import (
    LIVER,
    SPLEEN,
    SPOT,
    as_stored,
    phantom,
    ras_affine,
    spot_mm,
    write_case,
    write_run,
)

HALF_A_VOXEL = np.array([0.75, 0.5, 1.25])


def middle_mm(box: tuple[slice, ...]) -> np.ndarray:
    return voxel_to_world(ras_affine(), [(part.start + part.stop - 1) / 2 for part in box])


def is_at(place: np.ndarray, wanted: np.ndarray) -> bool:
    """Whether two places lie in one voxel of the phantom; the page rounds to micrometres."""
    return bool((np.abs(place - wanted) <= HALF_A_VOXEL + 1e-3).all())


def red(picture: np.ndarray) -> np.ndarray:
    """Pixels that the liver's layer colours."""
    return (picture[..., 0] - picture[..., 1] > 60) & (np.abs(picture[..., 1] - picture[..., 2]) < 25)


def test_it_opens_from_a_disk_without_a_complaint_or_a_request(visit, page):
    seen = visit(page.as_uri()).loaded(0)
    assert seen.page.title() == "sparseg report"
    seen.page.wait_for_timeout(300)
    assert seen.faults == []
    assert seen.requests == [page.as_uri()]
    # All nine pictures are decoded.
    widths = seen.page.eval_on_selector_all("img", "list => list.map(image => image.naturalWidth)")
    assert len(widths) == 9
    assert min(widths) > 20
    assert seen.page.is_hidden("#v-full")


def test_the_viewer_shows_the_image_and_switches_layers(visit, page):
    seen = visit(page.as_uri()).loaded(0)
    labels = seen.canvas()
    assert labels.std() > 10
    assert red(labels).sum() > 200
    none = seen.canvas_after(lambda: seen.page.check("[name=v-layer][value=none]"))
    assert not red(none[:, ::2]).sum() > red(labels).sum() / 4
    tokens = seen.canvas_after(lambda: seen.page.check("[name=v-layer][value=tokens]"))
    assert (tokens != none).any(axis=-1).mean() > 0.1
    low = seen.canvas_after(lambda: seen.page.check("[name=v-layer][value=confidence]"))
    # As strange a pink as the pictures have.
    pink = (low[..., 0] - low[..., 1] > 60) & (low[..., 2] - low[..., 1] > 20)
    assert pink.sum() > 200
    black = seen.canvas_after(lambda: seen.page.uncheck("#v-image"))
    assert black.mean() < low.mean()
    assert seen.faults == []


def test_opacity_and_view_change_the_picture(visit, page):
    seen = visit(page.as_uri()).loaded(0)
    faint = seen.canvas_after(lambda: seen.page.fill("#v-opacity", "10"))
    strong = seen.canvas_after(lambda: seen.page.fill("#v-opacity", "100"))
    assert red(strong).sum() > red(faint).sum() + 200
    for view in ("axial", "coronal", "sagittal", "solid", "planes"):
        seen.canvas_after(lambda: seen.page.select_option("#v-view", view))  # noqa: B023
    assert seen.faults == []


@pytest.mark.parametrize(("order", "signs"), AXIS_ORDERS[5::17])
def test_places_agree_in_millimetres(visit, tmp_path, order, signs):
    """The bright voxel inside the liver, typed in mm; stored in any orientation."""
    out = tmp_path / "out"
    seen = visit(
        write_report_page(write_run(out, [write_case(out, volumes=as_stored(order, signs))])).as_uri()
    )
    seen.loaded(0).go_to(spot_mm())
    assert is_at(seen.place(), spot_mm())
    assert "grey 255" in seen.words()
    assert "label: liver" in seen.words()
    assert "confidence 0.39" in seen.words()
    seen.go_to(middle_mm(SPLEEN))
    assert "label: spleen" in seen.words()
    assert "token: not run" in seen.words()
    assert "confidence 0.98" in seen.words()
    # One voxel beside the bright one is not bright.
    seen.go_to(voxel_to_world(ras_affine(), np.array(SPOT) - [1.0, 0, 0]))
    assert "grey 90" in seen.words()


def test_structures_are_found_by_name(visit, page):
    seen = visit(page.as_uri()).loaded(0)
    # It begins in the largest structure.
    assert "label: liver" in seen.words()
    assert np.abs(seen.place() - middle_mm(LIVER)).max() < 3
    options = seen.page.eval_on_selector_all("#v-structure option", "list => list.map(o => o.textContent)")
    assert options[1:] == ["liver", "spleen"]
    seen.page.select_option("#v-structure", label="spleen")
    assert "label: spleen" in seen.words()
    assert np.abs(seen.place() - middle_mm(SPLEEN)).max() < 3


def test_the_liver_is_on_the_left_and_in_front_and_a_click_finds_it(visit, page):
    """Right of the patient on the left of the axial plane; clicking on it names it."""
    seen = visit(page.as_uri()).loaded(0)
    seen.canvas_after(lambda: seen.page.select_option("#v-view", "axial"))
    seen.canvas_after(lambda: seen.page.fill("#v-opacity", "100"))
    # The cross moves to the corner of the same slice, so that its lines are away.
    corner = voxel_to_world(ras_affine(), [0.0, 0.0, float(SPOT[2])])
    picture = seen.canvas_after(lambda: seen.go_to(corner))
    rows, columns = np.nonzero(red(picture) & (picture[..., 0] > 200) & (picture[..., 1] < 40))
    bright = np.argwhere(picture.max(axis=-1) > 60)
    (top, left), (bottom, right) = bright.min(axis=0), bright.max(axis=0)
    assert columns.mean() < (left + right) / 2
    assert rows.mean() < (top + bottom) / 2
    row, column = int(np.median(rows)), int(np.median(columns))
    seen.page.locator("#v-canvas").click(position={"x": column, "y": row})
    assert "label: liver" in seen.words()
    assert np.abs(seen.place() - middle_mm(LIVER))[:2].max() < 4


HOSTILE = "<img src=x onerror=\"document.title='run'\"></script><script>document.title='run'</script>"


def test_names_that_are_scripts_do_not_run(visit, tmp_path):
    out = tmp_path / "out"
    case = "<img src=x onerror=alert(1)>"
    failed = {"case": "<svg onload=alert(2)>", "status": "error", "code": HOSTILE, "message": HOSTILE}
    row = write_case(out, case) | {"volumes_ml": {HOSTILE: 1.0}}
    write_run(out, [row, failed], labels={"0": "background", "1": HOSTILE, "2": HOSTILE}, device=HOSTILE)
    seen = visit(write_report_page(out).as_uri()).loaded(0)
    seen.go_to(spot_mm())
    assert f"label: {HOSTILE}" in seen.words()
    assert case in seen.page.inner_text("summary")
    seen.page.wait_for_timeout(300)
    assert seen.page.title() == "sparseg report"
    assert seen.faults == []
    assert seen.page.locator("img").count() == 9
    # Even markup that got past the escaping would not run: the page's policy has no place for it.
    seen.page.evaluate("text => document.body.insertAdjacentHTML('beforeend', text)", HOSTILE)
    seen.page.wait_for_timeout(300)
    assert seen.page.title() == "sparseg report"
    assert any("Content Security Policy" in fault for fault in seen.faults)


def test_a_large_report_loads_its_cases_as_they_are_asked_for(visit, tmp_path):
    out = tmp_path / "out"
    name = 'Müller #1 50% "a"'
    volumes = phantom()
    volumes["labels"].array[volumes["labels"].array == 1] = 0
    rows = [write_case(out, "first"), write_case(out, name, volumes)]
    page = write_report_page(write_run(out, rows), max_bytes=1000)
    seen = visit(page.as_uri()).loaded(0)
    assert "label: liver" in seen.words()
    scripts = [url for url in seen.requests if url.endswith(".js")]
    assert scripts == [(out / "report/first.js").as_uri()]
    seen.page.locator("button.show").nth(1).click()
    seen.loaded(1)
    assert "label: spleen" in seen.words()
    seen.page.select_option("#v-case", "0")
    seen.loaded(0)
    assert "label: liver" in seen.words()
    seen.page.locator("img").last.scroll_into_view_if_needed()
    # Not all are in sight at once, so each is asked for in its turn.
    for picture in seen.page.locator("img").all():
        picture.scroll_into_view_if_needed()
        picture.evaluate("image => image.decode()")
        assert picture.evaluate("image => image.naturalWidth") > 20
    assert seen.page.locator("img").count() == 18
    assert seen.faults == []
    assert all(url.startswith("file:") for url in seen.requests)


def test_without_webgl_the_pictures_stay(page, browser):
    context = browser.new_context()
    context.add_init_script("HTMLCanvasElement.prototype.getContext = () => null")
    blind = context.new_page()
    blind.goto(page.as_uri())
    blind.wait_for_selector("#viewer:not([hidden])")
    assert "no WebGL 2" in blind.inner_text("#v-note")
    assert blind.is_hidden("#v-canvas")
    assert blind.locator("img").count() == 9
    context.close()


@pytest.fixture
def served(tmp_path: Path) -> Any:
    """`sparseg view` of a case whose image preview is thinned."""
    out = tmp_path / "out"
    row = write_case(out)
    whole = phantom()
    thin = {kind: volume for kind, volume in whole.items() if kind in ("tokens", "confidence")}
    for kind in ("image", "labels"):
        volume = whole[kind]
        affine = volume.affine @ np.diag([2.0, 2.0, 1.0, 1.0])
        thin[kind] = type(volume)(np.ascontiguousarray(volume.array[:, ::2, ::2]), affine)
    row["previews"] = write_case(out / "scratch", volumes=thin)["previews"]
    (out / "scratch/report/patient").rename(out / "report/thin")
    row["previews"] = {kind: f"report/thin/{kind}.nii.gz" for kind in row["previews"]}
    write_run(out, [row])
    command = [sys.executable, "-m", "sparseg", "view", str(out), "--no-browser"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        yield line.split()[0], process
        process.terminate()


def test_view_serves_labels_at_full_resolution(visit, served):
    address, process = served
    assert address.startswith("http://127.0.0.1:")
    seen = visit(address).loaded(0)
    # An odd voxel: the preview has only its even neighbour, which is not bright.
    seen.go_to(spot_mm())
    assert "label: liver" in seen.words()
    edge = voxel_to_world(ras_affine(), [float(LIVER[0].start), 18.0, 14.0])
    seen.go_to(edge)
    thinned = seen.words()
    seen.page.click("#v-full")
    seen.loaded(0, "full")
    # The cross stays; the label is that of the file now.
    assert is_at(seen.place(), edge)
    for x in range(LIVER[0].start - 2, LIVER[0].stop + 2):
        seen.go_to(voxel_to_world(ras_affine(), [float(x), 18.0, 14.0]))
        inside = LIVER[0].start <= x < LIVER[0].stop
        assert ("label: liver" if inside else "label: none") in seen.words(), (x, thinned)
    assert "full resolution" in seen.page.inner_text("#v-note")
    assert seen.page.is_hidden("#v-full")
    assert seen.faults == []
    assert {url.removeprefix(address) for url in seen.requests} == {"", "patient.nii.gz"}
    process.send_signal(2)
    began = time.monotonic()
    assert process.wait(10) == 0
    assert time.monotonic() - began < 5
