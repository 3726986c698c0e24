"""The dashboard in a real browser. Screenshots go to the folder ``CROSSROADS_SCREENSHOTS``."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from crossroads.gateway.admin import AdminSettings, AdminSources
from crossroads.gateway.admin.pages import VIEWS
from tests.chromium import MARKS
from tests.gateway.admin.conftest import TOKEN
from tests.gateway.admin.fakes import XSS, FakeGateway, record
from tests.gateway.admin.serving import serving

pytestmark = MARKS
PATHS = {view.name: view.path for view in VIEWS}


@pytest.fixture(scope="module")
def shots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = os.environ.get("CROSSROADS_SCREENSHOTS")
    path = Path(folder) if folder else tmp_path_factory.mktemp("screenshots")
    path.mkdir(parents=True, exist_ok=True)
    return path


@pytest.fixture
def url(gateway: FakeGateway) -> Iterator[str]:
    with serving(gateway.sources()) as running:
        yield running


def look(browser: Any, *, width: int = 1280, dark: bool = False, still: bool = False) -> None:
    """Set the window's width and what the user prefers."""
    features = [
        {"name": "prefers-color-scheme", "value": "dark" if dark else "light"},
        {"name": "prefers-reduced-motion", "value": "reduce" if still else "no-preference"},
    ]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


def until(claim: Callable[[], Any], what: str) -> Any:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        found = claim()
        if found:
            return found
        time.sleep(0.03)
    raise AssertionError(f"not within 10 s: {what}")


def opened(browser: Any, url: str) -> Any:
    browser.get(url)
    until(lambda: run(browser, "document.body.dataset.ready === 'yes'"), f"{url} ready")
    return browser


def run(browser: Any, expression: str) -> Any:
    return browser.execute_script(f"return {expression}")


def errors(browser: Any) -> list[str]:
    return [entry["message"] for entry in browser.get_log("browser")]


def text(browser: Any, selector: str = "main") -> str:
    script = "const e = document.querySelector(arguments[0]); return e ? e.innerText : ''"
    found: str = browser.execute_script(script, selector)
    return found


def press(browser: Any, *keys: str) -> None:
    from selenium.webdriver import ActionChains

    ActionChains(browser).send_keys(*keys).perform()


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [1280, 400])
def test_every_view_renders_without_an_error_or_a_sideways_scroll(
    browser: Any, url: str, shots: Path, width: int, dark: bool
) -> None:
    errors(browser)
    look(browser, width=width, dark=dark)
    for name, path in PATHS.items():
        opened(browser, url + path)
        assert len(text(browser)) > 100, name
        assert errors(browser) == [], name
        assert run(browser, "document.documentElement.scrollWidth") <= width, name
        assert run(browser, "document.getElementById('problem').hidden"), name
        theme = "dark" if dark else "light"
        browser.save_screenshot(str(shots / f"{name}-{width}-{theme}.png"))
        ground = run(browser, "getComputedStyle(document.body).backgroundColor")
        assert (int(ground.split("(")[1].split(",")[0]) < 100) is dark


def test_every_view_says_something_useful_when_there_is_nothing(browser: Any, shots: Path) -> None:
    errors(browser)
    look(browser)
    with serving(
        AdminSources(traffic=lambda s: {"times": [], "requests_per_s": {}, "totals": {}})
    ) as url:
        for name, path in PATHS.items():
            opened(browser, url + path)
            until(lambda: len(text(browser)) > 60, f"{name} filled")
            browser.save_screenshot(str(shots / f"{name}-empty.png"))
            if name == "traffic":
                assert "No traffic yet" in text(browser) and "curl" in text(browser)
        opened(browser, url)
    with serving(AdminSources()) as url:
        for path in PATHS.values():
            opened(browser, url + path)
        opened(browser, url)
        assert "not watched" in text(browser)
    assert errors(browser) == []


def test_no_request_leaves_for_another_host(browser: Any, url: str) -> None:
    browser.get_log("performance")
    for path in PATHS.values():
        opened(browser, url + path)
    sent = [e["message"] for e in browser.get_log("performance")]
    sent = [m for m in sent if '"Network.requestWillBeSent"' in m]
    assert len(sent) > 20
    assert [m for m in sent if '"url":"http' in m and f'"url":"{url}' not in m] == []


def test_traffic_shows_the_split_the_saving_and_the_charts(browser: Any, url: str) -> None:
    look(browser)
    opened(browser, url)
    said = text(browser)
    assert "small-1b" in said and "Always frontier-x, expected" in said
    assert "Routed, expected" in said and "Routed, billed" in said
    assert run(browser, "document.querySelectorAll('#requests path').length") == 6
    assert run(browser, "document.querySelectorAll('#cost path').length") == 2
    before = text(browser, "#figures")
    browser.find_element("css selector", "#window label:nth-of-type(1)").click()
    until(lambda: text(browser, "#figures") != before, "another period's figures")


def test_the_arrow_keys_read_a_chart(browser: Any, url: str) -> None:
    from selenium.webdriver.common.keys import Keys

    opened(browser, url)
    run(browser, "document.querySelector('#requests svg').focus()")
    press(browser, Keys.ARROW_LEFT)
    first = text(browser, "#requests .tip")
    press(browser, Keys.ARROW_LEFT)
    assert "small-1b" in first and text(browser, "#requests .tip") != first


def test_the_slider_previews_another_point_by_keyboard_and_goes_back(
    browser: Any, url: str, shots: Path
) -> None:
    from selenium.webdriver.common.keys import Keys

    opened(browser, f"{url}/routing")
    assert "estimates of the last 512 prompts; measured on held-out prompts where marked" in text(
        browser
    )
    slider = browser.find_element("id", "price")
    deployed = slider.get_attribute("aria-valuetext")
    slider.send_keys(*[Keys.ARROW_RIGHT] * 8)
    until(lambda: "at the previewed point" in text(browser), "the preview")
    assert slider.get_attribute("aria-valuetext") != deployed
    until(lambda: "+" in text(browser, "#compare"), "the comparison")
    browser.save_screenshot(str(shots / "routing-preview.png"))
    browser.find_element("id", "back").send_keys(Keys.ENTER)
    until(lambda: "at the deployed point" in text(browser), "the way back")
    assert slider.get_attribute("aria-valuetext") == deployed


def test_a_decision_is_explained_where_its_link_leads(
    browser: Any, url: str, gateway: FakeGateway
) -> None:
    from selenium.webdriver.common.keys import Keys

    opened(browser, f"{url}/decisions")
    row = gateway.rows[4]
    run(browser, f"document.querySelector('a[href=\"#{row.decision_id}\"]').focus()")
    press(browser, Keys.ENTER)
    until(lambda: row.decision_id in text(browser, "#detail"), "the explanation")
    said = text(browser, "#detail")
    assert row.reason in said and "Estimated for each model" in said and "chosen" in said
    assert run(browser, "document.activeElement.id") == "detail"


def test_a_click_anywhere_on_a_row_explains_its_decision(
    browser: Any, url: str, gateway: FakeGateway
) -> None:
    look(browser)
    opened(browser, f"{url}/decisions")
    for place, selector in ((5, "td:nth-of-type(6)"), (6, "td:nth-of-type(3) a")):
        row = gateway.rows[place]
        cell = f'tr[data-id="{row.decision_id}"] {selector}'
        browser.find_element("css selector", cell).click()
        until(lambda r=row: r.decision_id in text(browser, "#detail .id"), "the explanation")


def test_with_several_workers_a_page_says_whose_figures_it_shows(browser: Any, url: str) -> None:
    opened(browser, f"{url}/upstreams")
    assert "of all 2 workers" in text(browser, "#list")
    assert "this worker (one of 2)" in text(browser, "#figures")
    opened(browser, f"{url}/system")
    assert "of this worker, one of 2" in text(browser, "#parts")
    said = "[...document.querySelectorAll('#parts dt')].map((e) => e.textContent)"
    assert "loop lag worst ms" in run(browser, said)


# Names of models, and how many of them the router's curve runs through.
_TOUCHING = """
const path = document.querySelector('#frontier path[stroke="var(--accent)"]');
const found = document.querySelectorAll('#frontier .model-name');
const names = [...found].map((e) => e.getBBox());
const size = path.getTotalLength();
const on = Array.from({length: 800}, (_, i) => path.getPointAtLength((size * i) / 799));
const hit = (b, p) => p.x > b.x && p.x < b.x + b.width && p.y > b.y && p.y < b.y + b.height;
return [names.length, names.filter((b) => on.some((p) => hit(b, p))).length];
"""


def test_no_models_name_lies_on_the_curve(browser: Any, gateway: FakeGateway, shots: Path) -> None:
    look(browser)
    points = [{"price": 1.0, "quality": 0.6 + 0.002 * i, "usd": 0.001 * (i + 1)} for i in range(9)]
    models = [{"model": f"m-{i}", **points[4 * i]} for i in range(3)]
    frontier = {"points": points, "models": models, "operating_point": points[3]}
    told = {"auto": {"kind": "learned", "models": [], "frontier": frontier}}
    with serving(replace(gateway.sources(), policies=lambda: told)) as url:
        opened(browser, f"{url}/routing")
        browser.save_screenshot(str(shots / "routing-flat.png"))
        found = browser.execute_script(_TOUCHING)
    assert found == [3, 0]


def test_decisions_are_filtered(browser: Any, url: str, gateway: FakeGateway) -> None:
    opened(browser, f"{url}/decisions")
    wanted = [row for row in gateway.rows if row.model == "coder-14b"]
    browser.find_element("name", "model").send_keys("coder-14b\n")
    rows = "document.querySelectorAll('#list tbody tr').length"
    until(lambda: run(browser, rows) == len(wanted), "the filtered list")
    assert 0 < len(wanted) < 60


def test_the_playground_shows_who_answered_why_and_for_how_much(
    browser: Any, url: str, shots: Path
) -> None:
    from selenium.webdriver.common.keys import Keys

    opened(browser, f"{url}/playground")
    browser.find_element("id", "prompt").send_keys("What is routing?", Keys.CONTROL, Keys.ENTER)
    until(lambda: "You said: What is routing?" in text(browser, "#result"), "the answer")
    until(lambda: "Estimated for each model" in text(browser, "#result"), "the decision")
    said = text(browser, "#result")
    assert "medium-8b answered" in said and "$0.00041" in said and "12 in, 40 out" in said
    assert errors(browser) == []
    browser.save_screenshot(str(shots / "playground-answered.png"))


def test_a_key_is_made_shown_once_and_revoked_in_two_steps(
    browser: Any, url: str, gateway: FakeGateway
) -> None:
    from selenium.webdriver.common.keys import Keys

    opened(browser, f"{url}/keys")
    browser.find_element("name", "name").send_keys("laptop\n")
    until(lambda: "sk-cr-" in text(browser, "#secret"), "the secret")
    until(lambda: "laptop" in text(browser, "#list"), "the new key")
    button = browser.find_element("css selector", '[aria-label="Revoke laptop"]')
    button.send_keys(Keys.ENTER)
    assert any(key["name"] == "laptop" for key in gateway.keys)
    button.send_keys(Keys.ENTER)
    until(lambda: "laptop" not in text(browser, "#list"), "the key gone")
    assert not any(key["name"] == "laptop" for key in gateway.keys)
    opened(browser, f"{url}/keys")
    assert "sk-cr-" not in browser.page_source


def test_the_keyboard_reaches_everything_and_its_place_is_seen(browser: Any, url: str) -> None:
    from selenium.webdriver.common.keys import Keys

    look(browser)
    for name, path in PATHS.items():
        opened(browser, url + path)
        press(browser, Keys.TAB)
        assert run(browser, "document.activeElement.className") == "skip"
        names, seen = [], set()
        for _ in range(120):
            press(browser, Keys.TAB)
            here = run(browser, _PLACE)
            if here is None or here["key"] in seen:
                break
            seen.add(here["key"])
            names.append(here)
        assert len(names) >= 10, name
        assert [n for n in names if not n["name"]] == [], name
        assert [n for n in names if not n["outline"]] == [], name


_PLACE = """(() => {
  const at = document.activeElement;
  if (!at || at === document.body) return null;
  const all = [...document.querySelectorAll('*')];
  const shown = at.matches('.choice input') ? at.nextElementSibling : at;
  const style = getComputedStyle(shown);
  const name = at.getAttribute('aria-label') || at.textContent.trim() || at.placeholder ||
    (at.labels && at.labels.length && at.labels[0].textContent.trim());
  const outline = style.outlineStyle !== 'none' && style.outlineWidth !== '0px';
  return {key: all.indexOf(at), name, outline};
})()"""


def test_landmarks_headings_labels_and_live_regions_are_there(browser: Any, url: str) -> None:
    for path in PATHS.values():
        opened(browser, url + path)
        assert run(browser, "document.querySelectorAll('h1').length") == 1
        assert run(browser, "document.querySelectorAll('main, nav[aria-label]').length") == 2
        assert run(browser, "document.querySelectorAll('[aria-current=page]').length") == 1
        assert run(browser, "document.querySelectorAll('[aria-live=polite]').length") >= 1
        assert run(browser, "document.documentElement.lang") == "en"
        unlabelled = run(
            browser,
            "[...document.querySelectorAll('input, select, textarea')]"
            ".filter(e => !e.labels.length).map(e => e.name)",
        )
        assert unlabelled == []
        pictures = "[...document.querySelectorAll('[role=img]')].filter(e => !e.ariaLabel).length"
        assert run(browser, pictures) == 0


@pytest.mark.parametrize("dark", [False, True])
def test_text_has_enough_contrast(browser: Any, url: str, dark: bool) -> None:
    look(browser, dark=dark)
    for path in PATHS.values():
        opened(browser, url + path)
        low = run(browser, _LOW_CONTRAST)
        assert low == [], path


# WCAG 2.2 AA: 4.5 for text of this size.
_LOW_CONTRAST = """(() => {
  const rgb = (c) => [...c.match(/[\\d.]+/g).map(Number), 1].slice(0, 4);
  const lum = ([r, g, b]) => [r, g, b].map((v) => v / 255)
    .map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = (e) => {
    for (; e; e = e.parentElement) {
      const c = rgb(getComputedStyle(e).backgroundColor);
      if (c[3] > 0.99) return c;
    }
    return [255, 255, 255, 1];
  };
  const found = [];
  for (const e of document.querySelectorAll('body *')) {
    const own = [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
    if (!own || !e.checkVisibility() || e.closest('svg, :disabled, .unseen, .skip')) continue;
    const [a, b] = [lum(rgb(getComputedStyle(e).color)), lum(ground(e))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) found.push(e.textContent.slice(0, 40) + ' ' + ratio.toFixed(2));
  }
  return found;
})()"""


def test_the_theme_button_goes_before_the_system_and_is_remembered(browser: Any, url: str) -> None:
    look(browser, dark=False)
    opened(browser, url)
    ground = "getComputedStyle(document.body).backgroundColor"
    light = run(browser, ground)
    button = browser.find_element("id", "theme")
    button.click()
    button.click()
    assert button.text == "Theme: dark" and run(browser, ground) != light
    opened(browser, f"{url}/keys")
    assert run(browser, ground) != light
    browser.find_element("id", "theme").click()
    assert run(browser, ground) == light


def test_reduced_motion_is_respected(browser: Any, url: str) -> None:
    duration = "getComputedStyle(document.querySelector('.bar i')).transitionDuration"
    look(browser, still=False)
    opened(browser, f"{url}/budgets")
    assert run(browser, duration) == "0.25s"
    look(browser, still=True)
    assert run(browser, duration) == "0s"


def test_polling_rests_while_nobody_looks(browser: Any, url: str) -> None:
    opened(browser, f"{url}/upstreams")
    hide = "Object.defineProperty(document, 'hidden', {configurable: true, get: () => %s});"
    browser.execute_script(
        "window.asked = 0; const real = window.fetch;"
        "window.fetch = (...a) => { window.asked += 1; return real(...a); };"
        + hide % "true"
        + "document.dispatchEvent(new Event('visibilitychange'));"
        # Any poll that is due while hidden would be seen at once.
        + "window.setTimeout = (work) => { window.asked += 100; };"
    )
    assert run(browser, "window.asked") == 0
    browser.execute_script(
        hide % "false" + "document.dispatchEvent(new Event('visibilitychange'));"
    )
    until(lambda: run(browser, "window.asked") > 0, "the poll on return")


def test_markup_in_names_prompts_and_errors_is_inert(
    browser: Any, url: str, gateway: FakeGateway
) -> None:
    errors(browser)
    gateway.rename = {"small-1b": XSS}
    gateway.keys = [gateway.key(XSS, 5, 1, team=XSS, models=[XSS], source=XSS)]
    before = gateway.rows
    gateway.rows = [record(1), *before[1:]]
    row = gateway.rows[0]
    row.model, row.asked, row.reason, row.prompt, row.answer = XSS, XSS, XSS, XSS, XSS
    row.scores, row.attempts, row.key_id = {XSS: 0.5}, [(XSS, 200, XSS, 0.1)], XSS
    try:
        for path in PATHS.values():
            opened(browser, url + path)
            until(lambda: len(text(browser)) > 100, path)
            if path in {"/upstreams", "/decisions", "/keys", "/budgets"}:
                assert XSS in text(browser), path
            assert run(browser, "window.hacked") is None, path
            assert run(browser, "document.querySelectorAll('main img, main script').length") == 0
        opened(browser, f"{url}/playground")
        browser.find_element("id", "prompt").send_keys(XSS)
        browser.find_element("id", "send").click()
        until(lambda: f"You said: {XSS}" in text(browser, "#result"), "the answer")
        assert run(browser, "window.hacked") is None
    finally:
        gateway.rows = before
    assert errors(browser) == []


def test_a_gateway_that_goes_away_is_said_and_one_that_returns_is_seen(
    browser: Any, url: str
) -> None:
    opened(browser, f"{url}/upstreams")
    browser.execute_script(
        "window.real = window.fetch; window.fetch = () => Promise.reject(new TypeError('gone'));"
        "document.dispatchEvent(new Event('visibilitychange'));"
    )
    until(lambda: "cannot be reached" in text(browser, "#problem"), "the problem")
    browser.execute_script(
        "window.fetch = window.real; document.dispatchEvent(new Event('visibilitychange'));"
    )
    until(lambda: run(browser, "document.getElementById('problem').hidden"), "all well again")


def test_a_browser_logs_in_acts_and_logs_out(
    browser: Any, gateway: FakeGateway, shots: Path
) -> None:
    before = gateway.num_reloads
    with serving(gateway.sources(), AdminSettings(token=TOKEN)) as url:
        browser.get(f"{url}/system")
        browser.save_screenshot(str(shots / "login.png"))
        browser.find_element("id", "token").send_keys("wrong\n")
        until(lambda: "not the token" in text(browser), "the refusal")
        browser.find_element("id", "token").send_keys(TOKEN + "\n")
        until(lambda: browser.current_url == f"{url}/system", "the page asked for")
        until(lambda: run(browser, "document.body.dataset.ready === 'yes'"), "the page")
        browser.find_element("id", "reload").click()
        until(lambda: "Nothing has changed." in text(browser, "#outcome"), "the reload")
        assert gateway.num_reloads == before + 1
        browser.find_element("id", "logout").click()
        until(lambda: browser.current_url == f"{url}/login", "the log-in page")
        browser.get(url)
        assert "/login" in browser.current_url
