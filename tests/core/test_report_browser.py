"""The report in a real browser: it loads from a file, draws, sorts, and asks for nothing."""

from __future__ import annotations

import time
from typing import Any

import pytest

from crossroads.core.arena import run_arena
from crossroads.core.report import write_report
from tests.chromium import MARKS
from tests.core.toy_task import ToyTask

pytestmark = MARKS


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    task = ToyTask()
    board = run_arena(task, ["better", "steady", "bound", "refused", "never"], seeds=2, jobs=1)
    page, _ = write_report(board, tmp_path_factory.mktemp("report"), plots=task.plots(board))
    return page.as_uri()


def opened(browser: Any, url: str) -> Any:
    """Load the page and wait until the plots are drawn."""
    browser.get(url)
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if browser.execute_script("return document.body.dataset.drawn === 'yes'"):
            return browser
        time.sleep(0.05)
    raise AssertionError(f"not drawn within 30 s: {browser.get_log('browser')}")


def column(page: Any, index: int) -> list[str]:
    script = "return [...document.querySelectorAll('#leaderboard tbody tr')].map("
    texts: list[str] = page.execute_script(
        script + f"row => row.cells[{index}].firstChild.textContent.trim())"
    )
    return texts


def test_it_loads_without_an_error_or_a_request(browser: Any, url: str) -> None:
    browser.get_log("performance")
    page = opened(browser, url)
    assert page.get_log("browser") == []
    sent = [entry["message"] for entry in page.get_log("performance")]
    requests = [m for m in sent if "Network.requestWillBeSent" in m]
    assert len(requests) >= 1  # the page itself, so the log does work
    assert not [m for m in requests if '"url":"http' in m]


def test_every_plot_is_drawn(browser: Any, url: str) -> None:
    page = opened(browser, url)
    drawn = page.execute_script(
        "return [...document.querySelectorAll('.plot')].map(p => p.querySelectorAll('svg').length)"
    )
    assert len(drawn) == 4 and all(drawn)
    assert page.execute_script("return document.querySelectorAll('.barlayer .point').length") == 5


def test_names_with_markup_are_shown_as_text(browser: Any, url: str) -> None:
    page = opened(browser, url)
    ticks = page.execute_script(
        "return [...document.querySelectorAll('#plot-3 .xtick text')].map(t => t.textContent)"
    )
    assert "<b>algebra</b>" in ticks


def test_a_click_sorts_and_a_second_one_turns_round(browser: Any, url: str) -> None:
    page = opened(browser, url)
    assert column(page, 0) == ["bound", "better", "never", "steady", "base"]
    buttons = page.find_elements("css selector", "#leaderboard thead button")
    buttons[0].click()
    assert column(page, 0) == ["base", "better", "bound", "never", "steady"]
    buttons[0].click()
    assert column(page, 0) == ["steady", "never", "bound", "better", "base"]
    buttons[1].click()
    assert column(page, 1) == sorted(column(page, 1), reverse=True)
    buttons[3].click()  # cost: lower is better, so it begins with the cheapest
    assert column(page, 0)[-1] == "never"  # without a figure, always last
    buttons[3].click()
    assert column(page, 0)[-1] == "never"
    sorted_by = "return document.querySelectorAll('[aria-sort]').length"
    assert page.execute_script(sorted_by) == 1


def test_the_log_switch_changes_the_axis(browser: Any, url: str) -> None:
    page = opened(browser, url)
    kind = "return document.getElementById('plot-0').layout.xaxis.type"
    assert page.execute_script(kind) == "log"
    page.find_element("css selector", ".switch input").click()
    assert page.execute_script(kind) == "linear"


def test_the_table_shows_where_it_can_be_scrolled_to(browser: Any, url: str) -> None:
    page = opened(browser, url)
    images, fixed = page.execute_script(
        "const style = getComputedStyle(document.querySelector('.scroll'));"
        "return [style.backgroundImage, style.backgroundAttachment]"
    )
    assert images.count("linear-gradient") == 4  # a cover and a shadow at either edge
    assert fixed.split(", ")[:4] == ["local", "local", "scroll", "scroll"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone_in_both_schemes(browser: Any, url: str, scheme: str) -> None:
    def emulate(command: str, **settings: Any) -> None:
        browser.execute_cdp_cmd(f"Emulation.{command}", settings)

    emulate("setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    emulate("setDeviceMetricsOverride", width=390, height=800, deviceScaleFactor=1, mobile=True)
    try:
        page = opened(browser, url)
        assert page.execute_script("return document.documentElement.scrollWidth") == 390
        colour = page.execute_script("return getComputedStyle(document.body).backgroundColor")
        brightness = sum(int(part) for part in colour[4:-1].split(","))
        assert (brightness > 600) == (scheme == "light")
    finally:
        emulate("clearDeviceMetricsOverride")
        emulate("setEmulatedMedia", features=[])
