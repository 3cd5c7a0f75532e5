import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import type { Browser, BrowserContextOptions, Locator, Page } from "playwright-core";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { publish } from "../../src/migration/events.js";
import { BENCHMARK, header, OWNERS, pastRun, read, story } from "./evidence.js";
import { chromiumPath, openBrowser, Rig } from "./rig.js";

/* The page in a browser: every view, also in a narrow window and in the dark, by keyboard, and checked by axe. */

const AXE = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");

/** A view's address, and what it shows once it is there. */
const VIEWS: readonly (readonly [hash: string, sight: string])[] = [
  ["#/", "live0001"],
  ["#/live/live0001", "Heat of the address space"],
  ["#/runs", "Choose two"],
  ["#/runs/1", "Predicted and actual"],
  ["#/runs/3", "the source goes on running"],
  ["#/compare/1/2", "The runs differ in: scenario, bandwidth. So may their figures."],
  ["#/compare/1/4", "Of run 4, most conditions were not recorded."],
  ["#/benchmarks", "Recommended"],
  ["#/benchmarks/1", "Trackers of dev0"],
  ["#/runs/99", "the store has no run 99"],
  ["#/nowhere", "There is no such page"],
];

const EMPTY: readonly (readonly [hash: string, sight: string])[] = [
  ["#/", "Nothing is running"],
  ["#/live/gone0001", "This run is not in progress"],
  ["#/runs", "No runs yet"],
  ["#/compare", "There are not two runs yet"],
  ["#/benchmarks", "No benchmarks yet"],
];

const WINDOWS: Readonly<Record<string, BrowserContextOptions>> = {
  "a wide window": { viewport: { width: 1200, height: 800 }, colorScheme: "light" },
  "a narrow window in the dark": {
    viewport: { width: 360, height: 740 },
    colorScheme: "dark",
    reducedMotion: "reduce",
  },
};

describe.skipIf(chromiumPath === undefined)("the dashboard's page", () => {
  let browser: Browser;
  let rig: Rig;
  let empty: Rig;
  beforeAll(async () => {
    [browser, rig, empty] = await Promise.all([openBrowser(), Rig.start(), Rig.start()]);
    rig.keep(
      pastRun("past0001"),
      pastRun("past0002", { scenario: "nic-pair", rounds: 9, downtimeMs: 210, conditions: { bandwidth: 1e9 } }),
      pastRun("past0003", { result: "cancelled", rounds: 2, downtimeMs: null }),
    );
    const [old] = rig.keep(pastRun("past0004"));
    rig.forgetConditions(old);
    rig.keepBenchmark(BENCHMARK);
    await rig.begin(header("live0001", 4), story(20));
  });
  afterAll(async () => {
    await browser?.close();
    await rig?.[Symbol.asyncDispose]();
    await empty?.[Symbol.asyncDispose]();
  });

  /** Opens a view, and collects what the browser complains of. */
  async function open(url: string, options: BrowserContextOptions = WINDOWS["a wide window"]) {
    const context = await browser.newContext(options);
    const page = await context.newPage();
    const complaints: string[] = [];
    page.on("pageerror", (error) => complaints.push(error.message));
    page.on("console", (message) => {
      // A missing run is a 404, which the browser logs by itself.
      if (message.type() === "error" && !message.text().includes("404")) complaints.push(message.text());
    });
    await page.goto(url);
    return { page, complaints, [Symbol.asyncDispose]: () => context.close() };
  }

  for (const [name, options] of Object.entries(WINDOWS)) {
    describe(`in ${name}`, () => {
      let opened: Awaited<ReturnType<typeof open>>;
      beforeAll(async () => {
        opened = await open("about:blank", options);
      });
      afterAll(() => opened?.[Symbol.asyncDispose]());

      it.each([
        ...VIEWS.map((view) => [...view, "runs"] as const),
        ...EMPTY.map((view) => [...view, "nothing"] as const),
      ])("%s shows '%s' where there is %s, fits, and has nothing that axe objects to", async (hash, sight, which) => {
        const { page, complaints } = opened;
        await page.goto((which === "nothing" ? empty : rig).url + hash);
        await page.getByText(sight).first().waitFor();
        expect(await overflow(page)).toBe(0);
        expect(await violations(page)).toEqual([]);
        expect(complaints).toEqual([]);
      });
    });
  }

  it("is usable by keyboard: links, the view's content, and the cells of the heat map", async () => {
    await using opened = await open(`${rig.url}#/`);
    const { page } = opened;
    await page.getByText("live0001").waitFor();
    await page.keyboard.press("Tab");
    expect(await focused(page)).toBe("Skip to the content");
    await press(page, "Tab", 3);
    expect(await focused(page)).toBe("Runs");
    await page.keyboard.press("Enter");
    await page.getByRole("heading", { name: "Runs" }).waitFor();
    // A new view takes the focus, so that Tab goes on in it.
    expect(await page.evaluate("document.activeElement?.id")).toBe("main");
    expect(await page.locator("nav [aria-current=page]").textContent()).toBe("Runs");

    await page.goto(`${rig.url}#/runs/1`);
    await page.locator("canvas.heat").focus();
    await press(page, "ArrowRight", 1);
    await press(page, "ArrowUp", 12);
    const first = await page.locator(".readout").textContent();
    expect(first).toMatch(/^round \d+, .* · RAM [\d.]+[KMG] to [\d.]+[KMG] · [\d ]+ pages, \d+ %$/);
    await press(page, "ArrowLeft", 1);
    expect(await page.locator(".readout").textContent()).not.toBe(first);
  });

  it("leads from two chosen runs to their comparison", async () => {
    await using opened = await open(`${rig.url}#/runs`);
    const { page } = opened;
    const compare = page.getByRole("button", { name: "Compare two runs" });
    await page.getByLabel("Compare run 2").check();
    expect(await compare.isDisabled()).toBe(true);
    await page.getByLabel("Compare run 1").check();
    expect(await page.getByLabel("Compare run 3").isDisabled()).toBe(true);
    await compare.click();
    await page.getByRole("table", { name: "Runs 1 and 2" }).waitFor();
    const figures = page.getByRole("table", { name: "Runs 1 and 2" });
    const downtime = figures.getByRole("row", { name: /^Downtime/ });
    expect(await cells(downtime)).toEqual(["62 ms", "210 ms", "+241 %"]);
  });

  it("says what differs before it compares figures, and what was not recorded", async () => {
    await using opened = await open(`${rig.url}#/compare/1/2`);
    const { page } = opened;
    const row = (name: RegExp) => page.getByRole("table", { name: /^Conditions/ }).getByRole("row", { name });
    await row(/^Bandwidth/).waitFor();
    expect(await cells(row(/^Bandwidth/))).toEqual(["unlimited", "954M/s", "differs"]);
    expect(await cells(row(/^Channels/))).toEqual(["2", "2", "yes"]);
    expect(await page.getByRole("heading", { level: 2 }).allTextContents()).toEqual(
      expect.arrayContaining(["What differs", "Figures"]),
    );
    await page.goto(`${rig.url}#/compare/1/4`);
    await page.getByText("Of run 4, most").waitFor();
    expect(await cells(row(/^Bandwidth/))).toEqual(["unlimited", "not recorded", "not known"]);
    expect(await cells(row(/^Design/))).toEqual(["split", "split", "yes"]);
    await page.goto(`${rig.url}#/runs/4`);
    await page.getByText("migration past0004").waitFor();
    expect(await cells(row(/^Transport/))).toEqual(["not recorded"]);
  });

  it("shows what the figures are: the sums of the reads, and predicted beside actual", async () => {
    await using opened = await open(`${rig.url}#/runs/1`);
    const { page } = opened;
    const pages = Array.from({ length: 6 }, (_, i) => read(i, OWNERS).owners.dev0.reported).reduce((a, b) => a + b);
    const row = page
      .getByRole("table", { name: "Devices, vCPUs and their trackers" })
      .getByRole("row", { name: /^dev0/ });
    await expect.poll(() => cells(row)).toContain(pages.toString().replace(/\B(?=(\d{3})+$)/g, " "));
    const downtime = page.getByRole("table", { name: "Predicted and actual" }).getByRole("row", { name: /^Downtime/ });
    expect(await cells(downtime)).toEqual(["66 ms", "62 ms", "+7 %"]);
  });

  it("shows a run as it goes on, and where it is once it is over", async () => {
    await using opened = await open(`${rig.url}#/`);
    const { page } = opened;
    const feed = await rig.begin(header("next0001", 2, "nic-pair"), [{ type: "phase", phase: "pre-copy", atMs: 5 }]);
    await page.getByRole("link", { name: "nic-pair" }).click();
    await page.getByText("migration next0001").waitFor();
    const painted = () => page.evaluate(paintedPixels);
    expect(await painted()).toBe(0);
    for (let i = 0; i < 5; i++) publish(read(i, ["dev0", "dev1"]));
    await expect.poll(painted).toBeGreaterThan(0);
    await page.getByRole("row", { name: /^dev1/ }).waitFor();
    const [kept] = rig.keep(pastRun("next0001", { scenario: "nic-pair" }));
    await feed[Symbol.asyncDispose]();
    await page.getByRole("link", { name: `see run ${kept}` }).click();
    await page.getByText("migration next0001").waitFor();
  });

  it("says so when the server goes away", async () => {
    const other = await Rig.start();
    await using opened = await open(`${other.url}#/`);
    await opened.page.getByText("live · 0 in progress").waitFor();
    await other[Symbol.asyncDispose]();
    await opened.page.getByText("not connected").waitFor();
  });

  it("asks for the token where there is one, and shows no name as HTML", async () => {
    const token = "0123456789abcdef0123456789abcdef";
    await using guarded = await Rig.start({ token });
    guarded.keep(pastRun("past0001", { scenario: "<img src=x onerror=alert(1)>" }));
    await using opened = await open(guarded.url, WINDOWS["a narrow window in the dark"]);
    const { page, complaints } = opened;
    await page.getByLabel("Token").fill("nonsense");
    expect(await violations(page)).toEqual([]);
    await page.keyboard.press("Enter");
    await page.waitForURL(/wrong/);
    await page.getByText("That was not the token").waitFor();
    await page.getByLabel("Token").fill(token);
    await page.getByRole("button").click();
    await page.getByText("Nothing is running").waitFor();
    await page.goto(`${guarded.url}#/runs`);
    await page.getByText("<img src=x onerror=alert(1)>").waitFor();
    expect(complaints).toEqual([]);
  });
});

/** The texts of a row's cells, its heading not included. */
async function cells(row: Locator): Promise<string[]> {
  return await row.locator("td").allTextContents();
}

/** By how many pixels the page is wider than its window. */
async function overflow(page: Page): Promise<number> {
  return await page.evaluate("document.documentElement.scrollWidth - innerWidth");
}

async function violations(page: Page): Promise<string[]> {
  await page.evaluate(AXE);
  return await page.evaluate(
    `axe.run(document, { runOnly: ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"] })
      .then(({ violations }) => violations.map(({ id, nodes }) => id + ": " + nodes.map(({ html }) => html).join(" ")))`,
  );
}

async function focused(page: Page): Promise<string | null> {
  return await page.evaluate("document.activeElement?.textContent");
}

async function press(page: Page, key: string, times: number): Promise<void> {
  for (let i = 0; i < times; i++) await page.keyboard.press(key);
}

/** Different colours on the heat map, less the ground's. */
const paintedPixels = `(() => {
  const canvas = document.querySelector("canvas.heat");
  const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  return new Set(new Uint32Array(data.buffer)).size - 1;
})()`;
