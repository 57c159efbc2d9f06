"""Pages in a real browser: opened from disk, quiet, asking for nothing, readable, and to be looked at closely."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from etcdops.report.compare import compare, write_comparison
from etcdops.report.html import write_report
from etcdops.report.index import list_runs, write_index
from etcdops.verify import Check
from scripts.big_run import write_big_run
from tests.report.conftest import Opened

Open = Callable[..., Opened]


def _is_quiet(opened: Opened, path: Path, width: int, dark: bool) -> None:
    """Assert that it asked for itself alone, complains of nothing, is no wider than the screen, and has its colours."""
    assert opened.requests == [path.as_uri()]
    assert opened.complaints == []
    assert opened.page.evaluate("document.documentElement.scrollWidth") <= width
    shade = opened.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (int(shade.removeprefix("rgb(").split(",")[0]) < 60) == dark
    # What is drawn has the page's colours, not Plotly's own.
    assert opened.figure("t.layout.paper_bgcolor") == ("#12161b" if dark else "#ffffff")


def test_a_page_opens_from_disk_and_is_quiet(page: Path, opened: Opened) -> None:
    """No error, no warning, no request but for itself; nothing is wider than the screen; its own colours."""
    assert opened.at_first == []
    _is_quiet(opened, page, 1280, dark=False)


def test_the_timeline_shows_what_was_recorded(opened: Opened) -> None:
    """Every lost write has its dot; what was not ok is drawn; the outage is marked and measured; each member's bar."""
    drawn = opened.figure("Object.fromEntries(t.data.filter(d => d.type === 'scatter').map(d => [d.name, d.x.length]))")
    assert drawn["acknowledged, and gone"] == 1
    assert drawn["outcome unknown"] > 0
    assert drawn["write, failed"] > 0
    assert "writes stopped:" in opened.page.inner_text("#timeline")
    bars = opened.figure("t.data.filter(d => d.type === 'bar').map(d => d.name)")
    assert {"leads", "follows", "away"} <= set(bars)


def test_a_dot_says_for_how_many_it_stands(opened: Opened) -> None:
    """Those that lie under a dot are counted by it: together the dots are all operations of the run."""
    said = opened.figure("t.data.filter(d => d.type === 'scatter').flatMap(d => d.text)")
    more = [int(each.partition("<br>and ")[2].partition(" more")[0] or 0) for each in said]
    assert max(more) > 0
    assert len(said) + sum(more) == 900


def test_zooming_shows_more(opened: Opened) -> None:
    """Dragging zooms in, and draws what had lain under other dots; the buttons lead to the whole and to the fault."""
    whole = opened.range()
    box = opened.page.locator("#timeline .nsewdrag").last.bounding_box()
    assert box
    middle = box["y"] + box["height"] / 2
    opened.page.mouse.move(box["x"] + box["width"] * 0.30, middle)
    opened.page.mouse.down()
    opened.page.mouse.move(box["x"] + box["width"] * 0.36, middle, steps=6)
    opened.page.mouse.up()
    opened.until(f"t.dataset.range !== '{_said(whole)}'")
    since, until = opened.range()
    assert whole[0] < since < until < whole[1]
    good = "t.data.find(d => d.name === 'write, acknowledged')"
    inside = f"{good}.x.filter(x => x >= {since} && x <= {until}).length"
    closely = opened.figure(inside)
    opened.page.click("#whole")
    opened.until(f"t.dataset.range === '{_said(whole)}'")
    assert opened.figure(inside) < closely
    opened.page.click("#focus")
    opened.until(f"t.dataset.range !== '{_said(whole)}'")
    assert opened.range()[0] > whole[0]
    assert opened.complaints == []


def _said(found: list[float]) -> str:
    return " ".join(f"{each:.3f}" for each in found)


def test_hovering_tells_what_an_operation_was(opened: Opened) -> None:
    """Its number, stream, member and latency, and why it did not end well."""
    opened.page.locator("#timeline").scroll_into_view_if_needed()
    spot = opened.figure(
        "(() => { const d = t.data.find(d => d.name === 'outcome unknown'), l = t._fullLayout;"
        " const b = t.getBoundingClientRect(), i = d.x.length >> 1;"
        " return [b.x + l.xaxis._offset + l.xaxis.d2p(d.x[i]), b.y + l.yaxis._offset + l.yaxis.d2p(d.y[i])]; })()"
    )
    opened.page.mouse.move(spot[0] - 3, spot[1])
    opened.page.mouse.move(spot[0], spot[1], steps=4)
    opened.until("t.querySelector('.hoverlayer .hovertext') !== null")
    told = opened.figure("t.querySelector('.hoverlayer').textContent")
    assert "outcome unknown" in told
    assert "DEADLINE_EXCEEDED" in told
    assert "pinned." in told


def test_the_scheme_may_change_while_it_is_open(opened: Opened) -> None:
    """The timeline follows the rest of the page, and both keep the part of the run that is shown."""
    opened.page.click("#focus")
    shown = opened.range()
    opened.page.emulate_media(color_scheme="dark")
    opened.until("t.layout.paper_bgcolor === '#12161b'")
    assert opened.range() == shown


def test_it_prints_in_light_and_on_paper(opened: Opened) -> None:
    """Also from a dark screen: light, with what is folded up unfolded, and the timeline as wide as the paper."""
    opened.page.emulate_media(color_scheme="dark")
    opened.until("t.layout.paper_bgcolor === '#12161b'")
    opened.page.evaluate("dispatchEvent(new Event('beforeprint'))")
    opened.until("t.layout.paper_bgcolor === '#ffffff' && t.layout.width === 690")
    assert opened.figure("[...document.querySelectorAll('details.print')].every(each => each.open)")
    opened.page.evaluate("dispatchEvent(new Event('afterprint'))")
    opened.until("t.layout.paper_bgcolor === '#12161b'")
    assert opened.page.pdf().startswith(b"%PDF")
    assert opened.complaints == []


def test_hostile_text_runs_nothing(open_page: Open, tmp_path: Path) -> None:
    """Names, errors and logs that hold scripts are shown; the browser neither runs them nor has to stop any.

    All this on a phone, in the dark.
    """
    text = "</script><script>window.hurt=1</script><img src=x onerror='window.hurt=2'>"
    folder = tmp_path / "run"
    write_big_run(folder, 300, text=text, checks=(Check(text, "failed", f"operation 5 {text}"),))
    made = write_report(folder)
    opened = open_page(made, scheme="dark", width=360)
    assert opened.page.evaluate("window.hurt") is None
    _is_quiet(opened, made, 360, dark=True)
    assert "window.hurt" in opened.page.inner_text("#timeline")
    assert opened.page.locator("img").count() == 0


def test_lists_and_comparisons_open(page: Path, open_page: Open, tmp_path: Path) -> None:
    """On a phone: the list is filtered by verdict and leads to pages; two runs stand side by side without a script."""
    runs = page.parent.parent
    opened = open_page(write_index(list_runs(runs), runs / "index.html"), ready=False, width=360)
    assert opened.page.inner_text("#count") == "3 of 3 runs"
    opened.page.select_option("[data-field=verdict]", "deviated")
    assert opened.page.inner_text("#count") == "1 of 3 runs"
    link = opened.page.locator("tbody tr:not([hidden]) a").get_attribute("href")
    assert (runs / str(link)).samefile(page)
    first, second, _ = sorted(runs.glob("2*"))
    both = open_page(write_comparison(compare(first, second), tmp_path / "both.html"), ready=False, width=360)
    assert "Two runs side by side" in both.page.inner_text("h1")
    for each in (opened, both):
        assert each.page.evaluate("document.documentElement.scrollWidth") <= 360
        assert each.complaints == []


def test_the_policy_stops_what_gets_in_all_the_same(page: Path, open_page: Open, tmp_path: Path) -> None:
    """If ever a script or a request came into a page, the page's own policy would not let it run."""
    bad = write_index(list_runs(page.parent.parent), tmp_path / "index.html")
    sneaked = '<script>window.hurt=1</script><img src="https://example.com/x.png">'
    bad.write_text(bad.read_text(encoding="utf-8").replace("</header>", f"{sneaked}</header>"), encoding="utf-8")
    opened = open_page(bad, ready=False)
    assert opened.page.inner_text("#count") == "3 of 3 runs"
    assert opened.page.evaluate("window.hurt") is None
    assert opened.stopped == ["https://example.com/x.png: csp"]
    assert len([each for each in opened.complaints if "Content Security Policy" in each]) == 2
