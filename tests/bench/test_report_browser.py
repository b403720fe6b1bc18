"""The report in a browser: nothing is fetched, nothing overflows, numbers read back are the table's.

Both pages are opened in headless Chromium, which Debian packages as chromium and chromium-driver.
"""

import csv
import json
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select, WebDriverWait
from tests.bench import invented
from tests.conftest import required

from histoflow._errors import ReadError
from histoflow.bench import evaluation_page, prediction_page
from histoflow.bench.report import Picture

BEST, FIRST, SECOND = "best<i>", *invented.SECTIONS
PATIENCE_S = 30


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """Headless Chromium whose downloads go to `browser.downloads`."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (chromium and driver):
        message = "no chromium and chromedriver on the PATH: apt-get install chromium chromium-driver to run this test"
        if required("chromium"):
            pytest.fail(message)
        pytest.skip(message)
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.add_argument("--force-prefers-reduced-motion")  # a click misses what is still scrolling
    downloads = tmp_path_factory.mktemp("downloads")
    options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    opened = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    opened.downloads = downloads
    opened.set_script_timeout(PATIENCE_S)
    yield opened
    opened.quit()


@pytest.fixture(scope="module")
def table():
    return invented.table()


def gone(*_):
    raise ReadError("there is no prediction")


def without_cd3e(fold, section, model, seed):
    made = invented.read(fold, section, model, seed)
    return made[:, made.var_names != "CD3E"] if section == SECOND else made


@pytest.fixture(scope="module")
def pages(tmp_path_factory, table):
    """Paths of both pages, of one without a prediction to map, and of one whose folds differ in their genes."""
    folder = tmp_path_factory.mktemp("pages")
    picture = Picture(invented.white_jpeg(), (400.0, 1300.0, 400.0, 1300.0))
    made = invented.calibrated(invented.prediction(FIRST))
    del made.layers["measured"]
    texts = {
        "evaluation": evaluation_page(table, invented.read, pictures={FIRST: picture}, source="/a/<b>/c"),
        "prediction": prediction_page(made, picture=picture, source="/a/<b>.h5ad"),
        "bare": evaluation_page(table, gone),
        "differing": evaluation_page(table[(table["section"] != SECOND) | (table["gene"] != "CD3E")], without_cd3e),
    }
    for name, text in texts.items():
        (folder / f"{name}.html").write_text(text, encoding="utf-8")
    return {name: folder / f"{name}.html" for name in texts}


def show(browser, path: Path, width: int = 1280) -> None:
    """Open a page at a width, and wait until it has drawn everything."""
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    browser.get(path.as_uri())
    WebDriverWait(browser, PATIENCE_S, poll_frequency=0.05).until(
        lambda one: one.execute_script("return document.documentElement.dataset.ready") == "true"
    )


AT_FIRST = """
    TABLE.sort = {index: 1, down: true};
    TABLE.filter.value = "";
    choose({model: DATA.mapped[0], section: DATA.sections[0].name, gene: GENES[0]});
    TABLE.show(STATE.model);
    document.getElementById("gene-note").textContent = "";
"""


@pytest.fixture
def evaluation(browser, pages):
    """The page of an evaluation as it is at first; opened once, since that takes a second."""
    if browser.current_url != pages["evaluation"].as_uri() or browser.execute_script("return innerWidth") < 1280:
        show(browser, pages["evaluation"])
    browser.execute_script(AT_FIRST)
    return browser


def pick(browser, gene: str) -> None:
    field = browser.find_element(By.ID, "gene")
    field.click()
    field.send_keys(gene, Keys.TAB)


def colours(browser, name: str) -> np.ndarray:
    """The numbers that a map shows, one per spot."""
    return np.array(browser.execute_script("return document.getElementById(arguments[0]).data[0].marker.color", name))


def text(browser, name: str) -> str:
    return browser.find_element(By.ID, name).text


def first_column(browser) -> list[str]:
    script = "return [...document.querySelectorAll('#gene-table tbody tr')].map((row) => row.dataset.gene)"
    return browser.execute_script(script)


def heading(browser, label: str):
    cells = browser.find_elements(By.CSS_SELECTOR, "#gene-table thead th")
    return next(cell for cell in cells if cell.text.split(" ")[0] == label)


def r_of(table, gene: str, model: str = BEST, section: str | None = None) -> float:
    rows = table[(table["metric"] == "pearson") & (table["model"] == model) & (table["gene"] == gene)]
    rows = rows if section is None else rows[rows["section"] == section]
    return float(rows["value"].mean())


def written(value: float) -> str:
    return f"{value:.3f}".replace("-", "−")


@pytest.mark.parametrize("name", ["evaluation", "prediction"])
@pytest.mark.parametrize("width", [1280, 390])
def test_a_page_fetches_nothing_logs_nothing_and_fits(browser, pages, name, width):
    browser.get_log("browser"), browser.get_log("performance")
    show(browser, pages[name], width)
    assert browser.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
    assert pages[name].as_uri() in asked
    assert [url for url in asked if not url.startswith(("file:", "data:", "blob:"))] == []
    page = "const page = document.documentElement; return [page.scrollWidth - page.clientWidth, innerWidth]"
    assert browser.execute_script(page) == [0, width]
    assert browser.execute_script("return [document.scripts.length, window.hacked]") == [3, None]


def test_a_page_without_predictions_has_its_tables_and_charts(browser, pages):
    browser.get_log("browser")
    show(browser, pages["bare"])
    assert browser.get_log("browser") == []
    assert text(browser, "map-predicted") == "No prediction was found."
    assert first_column(browser)[0] == "EPCAM"
    bars = browser.execute_script("return document.getElementById('model-chart').data[0].x.length")
    assert bars == len(invented.QUALITY)


def test_a_gene_that_a_section_lacks_is_said_with_the_sections_that_have_it(browser, pages):
    show(browser, pages["differing"])
    pick(browser, "CD3E")
    assert len(colours(browser, "map-predicted")) == invented.N_SPOTS
    Select(browser.find_element(By.ID, "section")).select_by_visible_text(SECOND)
    assert text(browser, "map-predicted") == f"CD3E is not on the gene list of {SECOND}; it is on that of {FIRST}."
    pick(browser, "EPCAM")
    np.testing.assert_allclose(colours(browser, "map-predicted"), invented.prediction(SECOND).X[:, 0], atol=1e-4)
    assert browser.get_log("browser") == []


def test_a_request_is_refused_by_the_page_itself(evaluation):
    script = """
        const done = arguments[0];
        addEventListener("securitypolicyviolation", (event) => done(event.effectiveDirective));
        fetch("https://example.org/").catch(() => {});
    """
    assert evaluation.execute_async_script(script) == "connect-src"


def test_a_picked_gene_is_mapped_and_its_r_is_the_tables(evaluation, table):
    made = invented.prediction(FIRST)
    for gene in ("CD3E", invented.TAG):
        pick(evaluation, gene)
        place = invented.GENES.index(gene)
        for name, values in {"map-predicted": made.X, "map-measured": made.layers["measured"]}.items():
            np.testing.assert_allclose(colours(evaluation, name), values[:, place], atol=1e-4)
        assert f"{gene} on {FIRST}, {BEST}. r {written(r_of(table, gene, section=FIRST))} here" in text(
            evaluation, "map-caption"
        )
    points = evaluation.execute_script(
        "const [, spots] = document.getElementById('scatter').data; return [spots.x, spots.y]"
    )
    np.testing.assert_allclose(points, [made.layers["measured"][:, place], made.X[:, place]], atol=1e-4)
    widths = colours(evaluation, "map-width")
    np.testing.assert_allclose(widths, np.linspace(0.5, 2.0, invented.N_SPOTS), atol=1e-4)
    assert text(evaluation, "width-title") == "Width of the 90 % interval"


def test_measured_and_predicted_share_a_colour_scale(evaluation):
    script = "return ['map-measured', 'map-predicted'].map((id) => document.getElementById(id).data[0].marker)"
    one, other = ((marker["cmin"], marker["cmax"]) for marker in evaluation.execute_script(script))
    assert one == other


def test_section_and_model_change_what_is_mapped(evaluation, table):
    Select(evaluation.find_element(By.ID, "section")).select_by_visible_text(SECOND)
    model = Select(evaluation.find_element(By.ID, "model"))
    assert [option.text for option in model.options] == [BEST, "hest_fm"]
    model.select_by_visible_text("hest_fm")
    pick(evaluation, "EPCAM")
    np.testing.assert_allclose(
        colours(evaluation, "map-predicted"), invented.prediction(SECOND, "hest_fm").X[:, 0], atol=1e-4
    )
    assert f"r {written(r_of(table, 'EPCAM', 'hest_fm', SECOND))} here" in text(evaluation, "map-caption")
    assert "gives no interval" in text(evaluation, "map-width")
    assert "hest_fm" in text(evaluation, "row-count")


def test_a_gene_that_is_not_there_is_said_and_the_map_stays(evaluation):
    before = colours(evaluation, "map-predicted")
    pick(evaluation, "NOSUCH")
    assert text(evaluation, "gene-note") == "There is no map of NOSUCH."
    np.testing.assert_array_equal(colours(evaluation, "map-predicted"), before)


def test_the_slider_changes_the_opacity_of_the_spots(evaluation):
    evaluation.find_element(By.ID, "opacity").send_keys(Keys.HOME, Keys.ARROW_RIGHT)
    assert text(evaluation, "opacity-value") == "5 %"
    script = "return document.getElementById('map-predicted').data[0].marker.opacity"
    assert evaluation.execute_script(script) == pytest.approx(0.05)


def test_a_picture_of_the_tissue_lies_under_the_spots_at_its_place(evaluation):
    script = "return document.getElementById('map-measured').layout.images[0]"
    picture = evaluation.execute_script(script)
    assert [picture[edge] for edge in ("x", "y", "sizex", "sizey")] == [400, 400, 900, 900]
    low, high = evaluation.execute_script("return document.getElementById('map-measured').layout.yaxis.range")
    assert low > high  # y runs downwards, as on the slide


def test_the_table_sorts_by_a_heading_with_the_keyboard_too(evaluation, table):
    ranked = sorted(invented.GENES[:-1], key=lambda gene: -r_of(table, gene))
    assert first_column(evaluation) == [*ranked, invented.FLAT]
    assert heading(evaluation, "r").get_attribute("aria-sort") == "descending"
    heading(evaluation, "r").find_element(By.TAG_NAME, "button").send_keys(Keys.ENTER)
    assert heading(evaluation, "r").get_attribute("aria-sort") == "ascending"
    assert first_column(evaluation) == [*ranked[::-1], invented.FLAT]  # what is not defined stays last
    heading(evaluation, "gene").find_element(By.TAG_NAME, "button").click()
    assert heading(evaluation, "r").get_attribute("aria-sort") == "none"
    cell = evaluation.find_element(By.CSS_SELECTOR, "#gene-table tr[data-gene=EPCAM] td")
    assert cell.text == written(r_of(table, "EPCAM"))


def test_the_filter_keeps_genes_that_contain_it(evaluation):
    evaluation.find_element(By.ID, "filter").send_keys("cd3")
    assert first_column(evaluation) == ["CD3E"]
    assert text(evaluation, "row-count") == f"1 of 7 genes, {BEST}"


def test_a_gene_of_the_table_is_mapped_when_chosen(evaluation):
    evaluation.find_element(By.CSS_SELECTOR, "#gene-table tr[data-gene=CD3E] button").click()
    assert text(evaluation, "map-caption").startswith("CD3E on ")
    assert evaluation.find_element(By.CSS_SELECTOR, "#gene-table tr.current").get_attribute("data-gene") == "CD3E"


def test_the_download_is_the_table_and_runs_no_formula(evaluation, table):
    evaluation.find_element(By.ID, "download").click()
    path = evaluation.downloads / "genes.csv"
    until = time.monotonic() + PATIENCE_S
    while not path.is_file() and time.monotonic() < until:
        time.sleep(0.05)
    with path.open(newline="", encoding="utf-8") as file:
        head, *rows = csv.reader(file)
    path.unlink()
    assert head[:2] == ["gene", "r"]
    assert head[-2:] == [f"r on {section}" for section in invented.SECTIONS]
    assert [row[0] for row in rows] == [("'" if g.startswith("=") else "") + g for g in first_column(evaluation)]
    for row in rows[:-1]:
        assert float(row[1]) == pytest.approx(r_of(table, row[0].removeprefix("'")), abs=6e-5)
    assert rows[-1][:2] == [invented.FLAT, ""]


def test_charts_hold_the_tables_numbers(evaluation, table):
    r = evaluation.execute_script("return document.getElementById('gene-chart').data[0].y")
    assert r[:-1] == pytest.approx([r_of(table, gene) for gene in first_column(evaluation)[:-1]], abs=6e-5)
    assert r[-1] is None
    bars = evaluation.execute_script("const [bars] = document.getElementById('model-chart').data; return bars.x")
    assert len(bars) == len(invented.QUALITY)
    cells = evaluation.find_elements(By.CSS_SELECTOR, "#model-table tbody tr td:nth-of-type(1)")
    assert [cell.text for cell in cells] == [written(r) for r in bars[::-1]]
    curve = evaluation.execute_script(
        "const {x, y, name} = document.getElementById('calibration-chart').data.at(-1); return [x, y, name]"
    )
    assert curve == [[p / 100 for p in invented.COVERED], list(invented.COVERED.values()), "best&lt;i&gt;"]


def test_a_prediction_is_mapped_with_what_is_flagged(browser, pages):
    show(browser, pages["prediction"])
    made = invented.prediction(FIRST)
    pick(browser, "CD3E")
    np.testing.assert_allclose(colours(browser, "map-predicted"), made.X[:, 5], atol=1e-4)
    script = "return document.getElementById('map-predicted').data[1].x.length"
    assert browser.execute_script(script) == 3
    assert browser.find_elements(By.ID, "map-measured") == []
    assert f"3 of {invented.N_SPOTS} on" in text(browser, "warnings")
    cell = browser.find_element(By.CSS_SELECTOR, "#gene-table tr[data-gene=CD3E] td")
    assert cell.text == written(float(made.X[:, 5].mean()))
