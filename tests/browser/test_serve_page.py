"""The page of a service in a real browser: images in, predictions out, for every task, on a desktop and a phone."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import pytest
from PIL import Image

from made_service import CLASSES, MadePredictor, picture, running

RED, GREEN = picture((200, 40, 30)), picture((30, 180, 40))
HOSTILE = "<img src=x onerror=alert(1)><script>alert(2)</script>.png"
DROP = """([name, data]) => {
  const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0)), transfer = new DataTransfer();
  transfer.items.add(new File([bytes], name, { type: "image/png" }));
  const place = document.getElementById("drop");
  for (const kind of ["dragenter", "dragover", "drop"])
    place.dispatchEvent(new DragEvent(kind, { bubbles: true, cancelable: true, dataTransfer: transfer }));
}"""
PASTE = """(data) => {
  const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0)), transfer = new DataTransfer();
  transfer.items.add(new File([bytes], "image.png", { type: "image/png" }));
  document.dispatchEvent(new ClipboardEvent("paste", { bubbles: true, clipboardData: transfer }));
}"""
Visit = Callable[..., Any]


def sent(data: bytes) -> str:
    return base64.b64encode(data).decode()


def file(name: str, data: bytes) -> dict[str, Any]:
    return {"name": name, "mimeType": "image/png", "buffer": data}


@pytest.fixture
def visit(browser: Any) -> Iterator[Visit]:
    """Open the page of a new service; at the end it must have logged no message and requested no other host."""
    with ExitStack() as stack:
        complaints: list[str] = []
        requests: list[tuple[str, str]] = []

        def open_page(predictor: MadePredictor, *, touch: bool = False, **options: Any) -> Any:
            limits = {name: options.pop(name) for name in ("max_bytes", "queue", "max_files") if name in options}
            service = stack.enter_context(running(predictor, **limits))
            context = browser.new_context(has_touch=touch, is_mobile=touch, **options)
            stack.callback(context.close)
            tab = context.new_page()
            tab.on("console", lambda message: complaints.append(message.text))
            tab.on("pageerror", lambda error: complaints.append(str(error)))
            tab.on("dialog", lambda dialog: (complaints.append(f"dialog: {dialog.message}"), dialog.dismiss()))
            tab.on("request", lambda request: requests.append((request.url, service.address)))
            tab.goto(service.address)
            return tab

        yield open_page
        expected = "Failed to load resource: the server responded with a status of"  # refusals, which tests provoke
        assert [one for one in complaints if not one.startswith(expected)] == []
        assert requests
        for url, address in requests:
            assert url.startswith((f"{address}/", f"blob:{address}/", "data:image/svg+xml,"))


def test_an_image_is_dropped_and_answered(visit: Visit) -> None:
    tab = visit(MadePredictor(), viewport={"width": 1440, "height": 900})
    tab.evaluate(DROP, [HOSTILE, sent(RED)])
    card = tab.locator(".card-prediction")
    card.locator(".verdict").wait_for()
    assert card.locator(".verdict").inner_text().split() == ["red", "93.8", "%"]
    assert card.locator(".file").inner_text() == HOSTILE
    assert "The prediction set (90 % coverage) contains only this class." in card.inner_text()
    probabilities = card.locator(".tally").first.locator("li")
    assert [one.split("\n")[0] for one in probabilities.all_inner_texts()] == ["red", "green", "<b>blue</b>"]
    assert "Members: 3 of 3 agree" in card.inner_text()
    votes = card.locator(".by-member li").all_inner_texts()
    assert [one.split("\n") for one in votes] == [
        ["first", "red", "85.3 %"],
        ["second", "red", "96.7 %"],
        ["third", "red", "99.3 %"],
    ]
    wide = [one.bounding_box()["width"] for one in probabilities.locator(".level").all()]
    groove = probabilities.locator(".groove").first.bounding_box()["width"]
    assert abs(wide[0] / groove - 0.938) < 0.01 and wide[0] > wide[1] > wide[2] > 0
    assert card.locator("img").evaluate("image => image.naturalWidth") == 40
    assert tab.locator("script:not([src]):not([type='application/json'])").count() == 0
    tab.evaluate(PASTE, sent(GREEN))
    newest = card.first.locator(".verdict")
    newest.wait_for()
    assert newest.inner_text().startswith("green")
    assert tab.locator("#status").inner_text() == "2 predictions"
    tab.get_by_role("button", name="Clear").click()
    assert card.count() == 0 and tab.locator("#predictions").is_hidden()


def test_an_unsure_prediction(visit: Visit) -> None:
    tab = visit(MadePredictor())
    tab.set_input_files("#files", [file("a.png", picture((100, 97, 90)))])
    tab.locator(".verdict").wait_for()
    text = tab.locator(".result").inner_text()
    assert "unsure" in text and "Below the confidence threshold" in text
    assert "The prediction set (90 % coverage) contains “red”, “green” and “<b>blue</b>”." in text


def test_long_names_are_read_whole_and_tall_images_seen_whole(visit: Visit) -> None:
    predictor = MadePredictor()
    names = [f"{'a name of which the end alone tells one from another ' * 2}{number}" for number in range(3)]
    predictor.policy = replace(predictor.policy, classes=tuple(names))
    tab = visit(predictor, viewport={"width": 1440, "height": 900})
    tall = io.BytesIO()
    Image.new("RGB", (30, 120), (200, 40, 30)).save(tall, "PNG")
    tab.set_input_files("#files", [file("tall.png", tall.getvalue())])
    tab.locator(".verdict").wait_for()
    cut = (
        "found => found.filter(one => one.scrollHeight > one.clientHeight || one.scrollWidth > one.clientWidth).length"
    )
    for kind in (".of", ".vote"):
        assert tab.locator(kind).count() > 0 and tab.locator(kind).evaluate_all(cut) == 0
    frame, image = (tab.locator(kind).bounding_box() for kind in (".frame", ".frame img"))
    assert frame["height"] == image["height"] < 400


def test_several_files_in_order_with_one_that_is_refused(visit: Visit) -> None:
    tab = visit(MadePredictor(), max_bytes=100_000)
    files = [file("1.png", RED), file("2.png", b"no image"), file("3.png", GREEN), file("4.png", bytes(100_001))]
    tab.set_input_files("#files", files)
    tab.get_by_text("2 predictions, 2 failed").wait_for()
    verdicts = [text.split()[0] for text in tab.locator(".verdict").all_inner_texts()]
    assert verdicts == ["red", "No", "green", "No"]
    assert "not an image" in tab.locator(".result").nth(1).inner_text().lower()
    assert "more than the limit of 0.1 MB" in tab.locator(".result").nth(3).inner_text()
    assert "cannot show it" in tab.locator(".frame").nth(1).inner_text()


def test_a_busy_service_is_retried(visit: Visit) -> None:
    predictor = MadePredictor()
    tab = visit(predictor, queue=1, max_files=1)
    predictor.pause_s = 0.4
    tab.set_input_files("#files", [file(f"{number}.png", RED) for number in range(3)])
    tab.get_by_text("3 predictions").wait_for()


@pytest.mark.parametrize("task", ["multilabel", "regression"])
def test_other_tasks(visit: Visit, task: str) -> None:
    tab = visit(MadePredictor(task))
    tab.set_input_files("#files", [file("a.png", RED)])
    card = tab.locator(".result")
    card.get_by_text("Members").wait_for()
    text = card.inner_text()
    if task == "multilabel":
        assert text.startswith("red 9") and card.locator(".notch").count() == 3
        assert card.locator(".facts").inner_text().split("\n") == ["first", "red", "second", "red", "third", "red"]
    else:
        assert all(name in text for name in CLASSES["regression"])
        assert "90 % interval: " in text and "No bounded interval at 90 %" in text
        assert text.count("±") == 2


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_phone(visit: Visit, scheme: str) -> None:
    tab = visit(MadePredictor(), touch=True, viewport={"width": 390, "height": 844}, color_scheme=scheme)
    assert tab.get_by_role("button", name="Take a photo").is_visible()
    assert tab.locator("#camera").get_attribute("capture") == "environment"
    assert tab.locator(".invite").inner_text() == "Predict an image"
    tab.set_input_files("#camera", [file(f"{'long name ' * 20}.png", RED)])
    tab.locator(".verdict").wait_for()
    wide, window = tab.evaluate("[document.documentElement.scrollWidth, innerWidth]")
    assert wide <= window
    paper, ink = (tab.evaluate(f"getComputedStyle(document.body).{name}") for name in ("backgroundColor", "color"))
    bright = [sum(map(int, colour[4:-1].split(","))) for colour in (paper, ink)]
    assert (bright[0] > bright[1]) == (scheme == "light")
    tab.goto(f"{tab.url}docs")
    wide, window = tab.evaluate("[document.documentElement.scrollWidth, innerWidth]")
    assert wide <= window and "POST /predict" in tab.content()
