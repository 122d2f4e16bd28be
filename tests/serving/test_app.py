"""The page in a real browser, and what those ask who look after a service."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator

import httpx2 as httpx
import pytest
from playwright.sync_api import Browser, Page

from peftkit.serving.app import PAGE, policy
from tests.serving.conftest import Chats
from tests.serving.running import QUESTIONS, Running

SPELL = "<img src=x onerror=\"document.title='taken'\"><script>document.title='taken'</script>"


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A page on which an error of its own, or of its policy, is an error of the test."""
    found, wrong = browser.new_page(color_scheme="dark"), []
    found.on("pageerror", lambda problem: wrong.append(str(problem)))
    found.on("console", lambda said: wrong.append(said.text) if said.type == "error" else None)
    yield found
    found.close()
    assert not [said for said in wrong if "status of 400" not in said]  # a refused request is told by the browser, too


def test_a_chat_is_streamed_and_goes_on(page: Page, chatting: Running, chats: Chats) -> None:
    page.goto(chatting.url)
    box = page.get_by_label("Message")
    box.fill(QUESTIONS[0])
    box.press("Enter")
    page.wait_for_selector(".said small")
    said = page.locator(".said").all_inner_texts()
    assert said[0] == QUESTIONS[0]
    assert page.evaluate("messages[1].content") == chats.answers["one"][0]
    page.get_by_label("Model").select_option("two")
    assert page.locator(".said").count() == 0
    page.get_by_label("Message").fill(QUESTIONS[1])
    page.get_by_role("button", name="Send").click()
    page.wait_for_selector(".said small")
    assert page.evaluate("messages[1].content") == chats.answers["two"][1]
    page.get_by_label("Message").fill("and then?")
    page.keyboard.press("Enter")
    page.locator(".said small").nth(1).wait_for()
    assert page.evaluate("messages.length") == 4


def test_an_error_is_a_sentence_and_texts_stay_texts(page: Page, chatting: Running) -> None:
    page.goto(chatting.url)
    page.get_by_label("Message").fill("the cat " * 200)
    page.keyboard.press("Enter")
    alert = page.get_by_role("alert")
    alert.wait_for()
    assert "context is 128 tokens" in alert.inner_text()
    page.get_by_label("Message").fill(SPELL)
    page.keyboard.press("Enter")
    page.wait_for_selector(".said small")
    assert SPELL in page.locator(".said.user").last.inner_text()
    page.evaluate("show({prediction: arguments, probabilities: {}})".replace("arguments", repr(SPELL)))
    assert page.locator(".prediction").inner_text() == SPELL
    assert page.locator("main img, main script").count() == 0
    assert page.title() == "peftkit"


def test_labels_have_bars(page: Page, labelling: Running) -> None:
    page.goto(labelling.url)
    page.get_by_label("text").fill("the row of number 4")
    page.get_by_role("button", name="Predict").click()
    page.wait_for_selector(".prediction")
    assert page.locator(".bar").count() == 3
    shares = [float(text.split()[0]) for text in page.locator(".bar span:last-child").all_inner_texts()]
    assert shares == sorted(shares, reverse=True)
    assert sum(shares) == pytest.approx(100, abs=0.2)
    expected = labelling.post("/predict", {"text": "the row of number 4"}).json()
    assert page.locator(".prediction").inner_text() == expected["prediction"]


def test_its_policy_allows_its_own_script_alone(chatting: Running) -> None:
    found = httpx.get(chatting.url)
    rules = found.headers["content-security-policy"]
    script = found.text.partition("<script>")[2].partition("</script>")[0]
    assert base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() in rules
    assert "unsafe" not in rules
    assert rules == policy(PAGE.read_text())
    assert "https://" not in PAGE.read_text()  # nothing comes from elsewhere
    assert found.headers["x-content-type-options"] == "nosniff"


def test_those_who_look_after_it_are_answered(chatting: Running) -> None:
    assert httpx.get(f"{chatting.url}/health").json() == {"status": "ok"}
    assert httpx.get(f"{chatting.url}/ready").json() == {"status": "ready"}
    before = numbers(chatting)
    chatting.post("/v1/completions", {"model": "one", "prompt": "hello", "max_tokens": 5})
    chatting.post("/v1/completions", {"model": "none", "prompt": "hello"})
    after = numbers(chatting)
    for name, more in (
        ('peftkit_requests_total{path="/v1/completions",status="200"}', 1),
        ('peftkit_requests_total{path="/v1/completions",status="404"}', 1),
        ('peftkit_tokens_total{kind="written",model="one"}', 5),
    ):
        assert after[name] - before.get(name, 0) == more
    assert after["peftkit_running"] == after["peftkit_waiting"] == 0
    paths = httpx.get(f"{chatting.url}/openapi.json").json()["paths"]
    assert {"/v1/chat/completions", "/predict", "/metrics"} <= paths.keys()
    assert httpx.get(f"{chatting.url}/nowhere").json()["error"]["message"] == "GET /nowhere is not answered here"


def test_what_can_be_asked_is_told_on_a_page(page: Page, chatting: Running) -> None:
    page.goto(f"{chatting.url}/docs")
    told = page.locator("main").inner_text()
    assert {path for path in httpx.get(f"{chatting.url}/openapi.json").json()["paths"] if path not in told} == set()
    chat = page.locator("details", has_text="/v1/chat/completions")
    assert "list of" in chat.inner_text() and "temperature" in chat.inner_text()


def test_a_service_that_stops_says_so(chatting: Running) -> None:
    chatting.service.stopping = True
    try:
        assert httpx.get(f"{chatting.url}/ready").status_code == 503
        assert httpx.get(f"{chatting.url}/health").status_code == 200
    finally:
        chatting.service.stopping = False


def numbers(running: Running) -> dict[str, float]:
    """What Prometheus reads."""
    lines = [line for line in httpx.get(f"{running.url}/metrics").text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}
