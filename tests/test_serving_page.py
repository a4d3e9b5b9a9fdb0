"""The playground in a real browser: what it shows is what was asked for, whoever uses it and how.

Skipped where there is no Chromium (Debian: the package chromium).
"""

import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageSequence
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from serving.client import Client
from serving.images import Pixels, decode_png, grid
from tests.fakes import write_tiny_bundle
from tests.server_process import ServerProcess, environment, running_server, sample

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
TOKEN = "a-token-that-is-long-enough"
MARGIN = 2
PATIENCE_MS = 30_000  # of a loaded machine
FAST = ("--provider", "cpu", "--max-lanes", "8")

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium")

Open = Callable[..., Page]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    expect.set_options(timeout=PATIENCE_MS)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM,
            args=["--no-sandbox"],  # it is for pages that one does not know
        )
        yield browser
        browser.close()


@pytest.fixture
def visit(browser: Browser) -> Iterator[Open]:
    """Opens pages; fails at the end if one of them complained or asked anybody else."""
    contexts: list[BrowserContext] = []
    complaints: list[str] = []
    asked: list[str] = []

    def visit(server: ServerProcess, fragment: str = "", **options: Any) -> Page:
        context = browser.new_context(**{"reduced_motion": "reduce", **options})
        context.set_default_timeout(PATIENCE_MS)
        contexts.append(context)
        page = context.new_page()
        address = f"http://127.0.0.1:{server.http_port}/"
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda line: complaints.append(line.text))
        page.goto(address + fragment)
        return page

    yield visit
    for context in contexts:
        context.close()
    expected = "Failed to load resource: "  # what Chromium says of each refusal
    assert not [line for line in complaints if not line.startswith(expected)]
    assert not [url for url in asked if not url.startswith(("http://127.0.0.1:", "blob:"))]


def draw(page: Page) -> None:
    page.get_by_role("button", name="Draw", exact=True).click()
    drawn(page)


def drawn(page: Page) -> None:
    expect(page.get_by_role("status")).to_contain_text("computed for")


def shown(page: Page) -> Pixels:
    """What the canvas shows, one pixel for each of the images', uint8 [H, W, 4]."""
    width, height, values = page.evaluate(
        """() => {
            const sheet = document.getElementById("sheet");
            const data = sheet.getContext("2d").getImageData(0, 0, sheet.width, sheet.height);
            return [sheet.width, sheet.height, Array.from(data.data)];
        }"""
    )
    return np.array(values, dtype=np.uint8).reshape(height, width, 4)


def cells(sheet: Pixels, size: int = 28) -> dict[tuple[int, int], Pixels]:
    """The images of a sheet, by row and column."""
    step = size + MARGIN
    rows, columns = (sheet.shape[0] - MARGIN) // step, (sheet.shape[1] - MARGIN) // step
    return {
        (row, column): sheet[MARGIN + row * step :, MARGIN + column * step :][:size, :size]
        for row in range(rows)
        for column in range(columns)
    }


def equal(cell: Pixels, pixels: Pixels) -> bool:
    """Whether a cell shows exactly this image, uint8 [H, W, 1 or 3]."""
    colours = np.broadcast_to(pixels, (*pixels.shape[:2], 3))
    return bool((cell[:, :, :3] == colours).all() and (cell[:, :, 3] == 255).all())


def saved(page: Page, button: str, directory: Path) -> Path:
    """The file that a button saves."""
    with page.expect_download() as download:
        page.get_by_role("button", name=button).click()
    path = directory / download.value.suggested_filename
    download.value.save_as(path)
    return path


def test_a_digit_a_count_and_a_seed_are_the_images_of_the_client(
    visit: Open, mnist_server: ServerProcess
) -> None:
    page = visit(mnist_server)
    page.get_by_role("radio", name="3").check(force=True)
    page.get_by_label("How many").fill("5")
    page.get_by_label("Seed").fill("18446744073709551615")
    page.get_by_label("Sampler").select_option("DDIM")
    page.get_by_label("Steps").fill("6")
    page.get_by_label("Guidance").fill("1.5")
    draw(page)
    with Client(mnist_server.target) as client:
        generation = client.generate(
            3, 5, seed=2**64 - 1, sampler="ddim", num_steps=6, guidance_scale=1.5
        )
    found = list(cells(shown(page)).values())
    assert all(
        equal(cell, image.pixels) for cell, image in zip(found, generation.images, strict=False)
    )
    assert len(found) == 6  # two rows of three, the last cell empty
    assert not found[5].any()
    expect(page.get_by_role("img")).to_have_accessible_name(
        "3, 5 times, seed 18446744073709551615."
    )


def test_the_commands_and_the_link_draw_the_very_same_pixels(
    visit: Open, mnist_server: ServerProcess, tmp_path: Path
) -> None:
    page = visit(mnist_server)
    page.get_by_label("or type a number").fill("2026")
    page.get_by_label("How many").fill("2")
    page.get_by_label("Seed").fill("7")
    draw(page)
    sheet = cells(shown(page))
    assert set(sheet) == {(row, column) for row in range(2) for column in range(4)}
    assert not equal(sheet[0, 0], sheet[0, 2][:, :, :3]), "the two twos differ"

    page.get_by_text("The same images, elsewhere").click()
    for name in ("curl", "client"):
        command = page.locator(f"#{name}").inner_text()
        directory = tmp_path / name
        directory.mkdir()
        done = subprocess.run(
            ["bash", "-euc", command.replace("python -m", f"{sys.executable} -m")],
            cwd=directory,
            env=environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert {path.name for path in directory.iterdir()} == {"2.png", "0.png", "6.png"}
        for label, places in {
            "2": [(0, 0), (0, 2), (1, 0), (1, 2)],
            "0": [(0, 1), (1, 1)],
            "6": [(0, 3), (1, 3)],
        }.items():
            image = decode_png((directory / f"{label}.png").read_bytes())
            expected = grid([sheet[place][:, :, :1] for place in places])
            np.testing.assert_array_equal(image, expected, err_msg=f"{name} {label}")

    again = visit(mnist_server, page.url.partition("/#")[2].join(["#", ""]))
    drawn(again)
    np.testing.assert_array_equal(shown(again), shown(page))
    expect(again.get_by_label("or type a number")).to_have_value("2026")


def test_the_film_is_saved_as_a_gif_and_its_end_as_a_png(
    visit: Open, mnist_server: ServerProcess, tmp_path: Path
) -> None:
    page = visit(mnist_server, "#labels=8&count=4&seed=1&num_steps=9")
    drawn(page)
    with Image.open(saved(page, "Save PNG", tmp_path)) as png:
        last = np.array(png.convert("L"))
    scale = 512 // (2 * 30 + 2)
    assert last.shape == (62 * scale, 62 * scale)
    for (row, column), cell in cells(shown(page)).items():
        top, left = (MARGIN + row * 30) * scale, (MARGIN + column * 30) * scale
        part = last[top : top + 28 * scale : scale, left : left + 28 * scale : scale]
        np.testing.assert_array_equal(part, cell[:, :, 0])
    path = saved(page, "Save GIF", tmp_path)
    assert path.name == "mnist-8-seed-1.gif"
    with Image.open(path) as film:
        assert film.info["loop"] == 0
        frames = [np.array(frame.convert("L")) for frame in ImageSequence.Iterator(film)]
    assert 2 <= len(frames) <= 9, "one for each step, but a slow reader misses previews"
    np.testing.assert_array_equal(frames[-1], last)
    assert (frames[0] != last).any()


def test_a_film_in_colour_and_labels_with_names(visit: Open, tmp_path: Path) -> None:
    names = ("a <b>", "T-shirt/top")
    bundle = write_tiny_bundle(tmp_path / "tiny", image_shape=(3, 8, 8), label_names=names)
    with running_server(bundle, flags=FAST) as server:
        page = visit(server)
        expect(page.get_by_role("radio")).to_have_count(2)
        expect(page.get_by_label("or type a number")).to_be_hidden()
        page.get_by_role("radio", name="T-shirt/top").check(force=True)
        page.get_by_label("How many").fill("3")
        page.get_by_label("Seed").fill("2")
        draw(page)
        with Client(server.target) as client:
            generation = client.generate(1, 3, seed=2)
        for cell, image in zip(cells(shown(page), 8).values(), generation.images, strict=False):
            assert equal(cell, image.pixels)
        with Image.open(saved(page, "Save GIF", tmp_path)) as film:
            assert film.convert("RGB").size == (22 * 23, 22 * 23)


def test_it_works_with_the_keyboard_alone(visit: Open, mnist_server: ServerProcess) -> None:
    page = visit(mnist_server)
    seven = page.get_by_role("radio", name="7")
    expect(seven).to_be_checked()
    page.keyboard.press("Tab")
    expect(seven).to_be_focused()
    page.keyboard.press("ArrowRight")
    expect(page.get_by_role("radio", name="8")).to_be_checked()
    names = []
    for _ in range(8):
        page.keyboard.press("Tab")
        focused = page.locator(":focus")
        names.append(focused.get_attribute("id"))
        assert focused.evaluate("each => getComputedStyle(each).outlineStyle") != "none"
    assert names == [
        "number", "count", "seed", "die", "sampler", "num_steps", "guidance_scale", "draw",
    ]  # fmt: skip
    page.keyboard.press("Enter")
    drawn(page)
    expect(page.get_by_role("button", name="Draw", exact=True)).to_be_focused()


def test_what_is_wrong_is_said_at_its_field_and_nothing_is_asked(
    visit: Open, mnist_server: ServerProcess
) -> None:
    page = visit(mnist_server)
    expect(page.get_by_role("status")).to_have_text("Choose what to draw.")
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.get_by_label("Seed").fill("18446744073709551616")
    page.get_by_label("Steps").fill("1001")
    page.get_by_role("button", name="Draw", exact=True).click()
    seed = page.get_by_label("Seed")
    expect(seed).to_be_focused()
    expect(seed).to_have_attribute("aria-invalid", "true")
    expect(seed).to_have_accessible_description("a whole number, at most 18446744073709551615")
    steps = page.get_by_label("Steps")
    expect(steps).to_have_accessible_description("a whole number in 1 to 1000")
    assert not asked
    seed.fill("1")
    steps.fill("3")
    draw(page)
    expect(page.locator(".error:visible")).to_have_count(0)


@pytest.mark.parametrize(
    ("status", "headers", "words"),
    [
        (429, {"Retry-After": "7"}, "The server is busy. There may be room in 7 seconds."),
        (503, {}, "Nothing can be drawn now: this server is draining."),
        (504, {}, "This took longer than the server allows."),
        (500, {}, "this server is draining"),
    ],
)
def test_what_the_server_refuses_is_said_plainly_and_can_be_tried_again(
    visit: Open, mnist_server: ServerProcess, status: int, headers: dict[str, str], words: str
) -> None:
    page = visit(mnist_server)
    error = {"code": status, "status": "X", "message": "this server is draining", "details": []}
    page.route(
        "**/v1/generate",
        lambda route: route.fulfill(status=status, headers=headers, json={"error": error}),
    )
    page.get_by_role("button", name="Draw", exact=True).click()
    expect(page.get_by_role("alert")).to_contain_text(words)
    page.unroute("**/v1/generate")
    page.get_by_role("button", name="Try again").click()
    drawn(page)
    expect(page.get_by_role("alert")).to_be_hidden()


def test_a_token_is_asked_for_and_a_server_that_goes_away_is_missed(
    visit: Open, tmp_path: Path
) -> None:
    bundle = write_tiny_bundle(tmp_path / "tiny")
    (tmp_path / "tokens").write_text(TOKEN)
    flags = (*FAST, "--auth-tokens-file", str(tmp_path / "tokens"))
    with running_server(bundle, flags=flags) as server:
        page = visit(server)
        expect(page.get_by_role("alert")).to_contain_text("This server wants a token.")
        token = page.get_by_label("Token")
        expect(token).to_be_focused()
        expect(page.get_by_label("Seed")).to_be_hidden()
        token.fill("wrong")
        token.press("Enter")
        expect(page.get_by_role("alert")).to_contain_text("accepts no such token")
        token.fill(TOKEN)
        token.press("Enter")
        expect(page.get_by_role("alert")).to_be_hidden()
        draw(page)
        assert TOKEN not in page.url
        assert TOKEN not in page.locator("#commands").inner_text()
        server.process.kill()
        server.process.wait()
        page.get_by_role("button", name="Draw", exact=True).click()
        expect(page.get_by_role("alert")).to_contain_text("The server does not answer")


def test_who_stops_frees_the_lanes(visit: Open, mnist_server: ServerProcess) -> None:
    cancelled = mnist_server.finished("HttpGenerateStream", "CANCELLED")
    page = visit(mnist_server)
    page.get_by_label("How many").fill("64")
    page.get_by_label("Steps").fill("1000")
    page.get_by_role("button", name="Draw", exact=True).click()
    running = sample("diffusion_lanes_in_use", model="mnist")
    mnist_server.until(lambda samples: samples[running] > 0)
    page.get_by_role("button", name="Stop").click()
    expect(page.get_by_role("status")).to_have_text("Stopped.")
    mnist_server.until_idle()
    assert mnist_server.finished("HttpGenerateStream", "CANCELLED") == cancelled + 1


def test_images_come_out_of_noise_one_frame_after_the_other(
    visit: Open, mnist_server: ServerProcess
) -> None:
    page = visit(mnist_server, reduced_motion="no-preference")
    page.evaluate(
        """() => {
            window.frames = new Set();
            const sheet = document.getElementById("sheet");
            const look = () => {
                window.frames.add(sheet.toDataURL());
                requestAnimationFrame(look);
            };
            look();
        }"""
    )
    page.get_by_label("How many").fill("1")
    page.get_by_label("Steps").fill("100")
    draw(page)
    for _ in range(400):  # wait_for_function would need unsafe-eval
        if page.evaluate("window.frames.size") >= 5:  # the noise of the start, noise, x_0, ...
            return
        page.wait_for_timeout(50)
    raise AssertionError(page.evaluate("window.frames.size"))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_on_a_phone_and_can_be_read_in_light_and_dark(
    visit: Open, mnist_server: ServerProcess, scheme: str
) -> None:
    viewport = {"width": 360, "height": 740}
    page = visit(
        mnist_server, "#labels=2.0.2.6&count=2&seed=1", viewport=viewport, color_scheme=scheme
    )
    drawn(page)
    page.get_by_text("The same images, elsewhere").click()
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    for selector in ("body", "#status", "button.primary", "#chips span", "pre", "legend"):
        assert contrast(page, selector) >= 4.5, selector


def contrast(page: Page, selector: str) -> float:
    """The contrast of a text to what is behind it, as WCAG has it."""
    colours = page.locator(selector).first.evaluate(
        """each => {
            const colour = getComputedStyle(each).color;
            const transparent = "rgba(0, 0, 0, 0)";
            while (each && getComputedStyle(each).backgroundColor === transparent) {
                each = each.parentElement;
            }
            return [colour, getComputedStyle(each ?? document.documentElement).backgroundColor];
        }"""
    )
    first, second = sorted(map(_luminance, colours), reverse=True)
    return (first + 0.05) / (second + 0.05)


def _luminance(colour: str) -> float:
    values = [int(text) / 255 for text in re.findall(r"\d+", colour)[:3]]
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in values]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
