import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { barChart } from "./bar-chart.js";
import { AREA, SHEET } from "./figure.js";
import { heatMap } from "./heat-map.js";
import { lineChart } from "./line-chart.js";
import { allElements, type ParsedElement, parseXml } from "./well-formed.test.helper.js";

const TEXT = { title: "Reads", description: "What reads cost." };
const HOSTILE = `"'><script>alert(1)</script>&amp;]]>\u0000<!--`;

function ofClass(svg: ParsedElement, name: string): ParsedElement[] {
  return allElements(svg).filter(({ attributes }) => attributes.class?.split(" ").includes(name));
}

const points = [
  { x: 1, y: 0.5, low: 0.4, high: 0.7 },
  { x: 8, y: 2, low: 2, high: 2 },
  { x: 64, y: 0 },
];
const line = (name = "split", title = TEXT.title) =>
  lineChart({
    ...TEXT,
    title,
    x: { label: "devices", scale: "log2" },
    y: { label: "ms", scale: "log10" },
    series: [{ name, points }],
    marks: [{ x: 5.5, y: 1, text: "5.5" }],
  });
const bars = (name = "split", category = "case a") =>
  barChart({
    ...TEXT,
    x: "workload",
    y: { label: "ms" },
    categories: [category, "case b"],
    series: [
      { name, bars: [{ value: 3, low: 2, high: 4 }, null] },
      { name: "type1", bars: [{ value: 0 }, { value: 6 }] },
    ],
  });
const heat = (name = "round 0") =>
  heatMap({
    ...TEXT,
    x: "address",
    unit: "pages",
    columns: { first: "0", last: "1G" },
    rows: [
      { name, values: [0, 0, 0, 9, 1] },
      { name: "round 1", values: [0, 0, 0, 0, 0] },
    ],
  });

describe.each([
  ["a line chart", line],
  ["a bar chart", bars],
  ["a heat map", heat],
] as const)("%s", (_, draw) => {
  test("is well-formed SVG that tells its title and description, and refers to nothing", () => {
    const text = draw();
    const svg = parseXml(text);
    expect(svg).toMatchObject({ name: "svg", attributes: { xmlns: "http://www.w3.org/2000/svg", role: "img" } });
    expect(svg.children[0]).toMatchObject({ name: "title", text: TEXT.title });
    expect(svg.children[1]).toMatchObject({ name: "desc", text: TEXT.description });
    expect(text.replace("http://www.w3.org/2000/svg", "")).not.toMatch(/https?:|url\(|href|@import|<script/);
  });

  test("shows a hostile name as text", () => {
    const svg = parseXml(draw(HOSTILE));
    expect(allElements(svg).map(({ name }) => name)).not.toContain("script");
    const shown = allElements(svg).filter(({ name, text }) => name === "text" && text.includes("alert(1)"));
    expect(shown).not.toEqual([]);
  });

  test("has colours for a light and for a dark page", () => {
    expect(draw()).toContain("prefers-color-scheme:dark");
  });
});

test("a title is text, too", () => {
  expect(parseXml(line("split", HOSTILE)).children[0].text).toContain("<script>");
});

describe("a line chart", () => {
  test("has a marker per point, a whisker where repetitions differ, and a mark", () => {
    const svg = parseXml(line());
    // One in the legend.
    expect(ofClass(svg, "dp-f0")).toHaveLength(points.length + 1);
    expect(ofClass(svg, "dp-whisker")).toHaveLength(1);
    expect(ofClass(svg, "dp-mark")).toHaveLength(1);
  });

  test("draws everything inside its area", () => {
    const amount = fc.double({ min: 1e-6, max: 1e9, noNaN: true });
    fc.assert(
      fc.property(fc.array(fc.record({ x: amount, y: amount }), { minLength: 1, maxLength: 20 }), (given) => {
        const svg = parseXml(
          lineChart({
            ...TEXT,
            x: { label: "x", scale: "log2" },
            y: { label: "y" },
            series: [{ name: "a", points: given.toSorted((a, b) => a.x - b.x) }],
          }),
        );
        for (const { attributes, name } of ofClass(svg, "dp-f0").slice(1)) {
          expect(name).toBe("circle");
          expect(Number(attributes.cx)).toSatisfy((x: number) => x >= AREA.left && x <= AREA.right);
          expect(Number(attributes.cy)).toSatisfy((y: number) => y >= AREA.top && y <= AREA.bottom);
        }
      }),
    );
  });

  test("refuses more series than can be told apart", () => {
    const series = Array.from({ length: 8 }, (_, index) => ({ name: `s${index}`, points }));
    expect(() => lineChart({ ...TEXT, x: { label: "x" }, y: { label: "y" }, series })).toThrow(RangeError);
  });
});

describe("a bar chart", () => {
  test("has bars as high as their values are, from 0, and none for what was not measured", () => {
    const svg = parseXml(bars());
    const [legend, three, ...more] = ofClass(svg, "dp-f0");
    const [, zero, six] = ofClass(svg, "dp-f1");
    expect(legend).toBeDefined();
    expect(more).toEqual([]);
    expect(Number(six.attributes.height)).toBeCloseTo(2 * Number(three.attributes.height), 0);
    expect(Number(zero.attributes.height)).toBe(0);
    expect(Number(three.attributes.y) + Number(three.attributes.height)).toBeCloseTo(AREA.bottom, 0);
  });
});

describe("a heat map", () => {
  test("joins neighbours of equal strength, and shows nothing apart from a little", () => {
    const svg = parseXml(heat());
    const cells = allElements(svg).filter(
      ({ attributes, name }) => name === "rect" && Number(attributes.y) >= AREA.top,
    );
    expect(cells.map(({ attributes }) => attributes.class)).toEqual(["dp-h0", "dp-h8", "dp-h3", "dp-h0"]);
    const width = (AREA.right - AREA.left) / 5;
    expect(cells.map(({ attributes }) => Math.round(Number(attributes.width) / width))).toEqual([3, 1, 1, 5]);
  });

  test("grows with its rows", () => {
    const rows = Array.from({ length: 300 }, (_, index) => ({ name: `${index}`, values: [index] }));
    const svg = parseXml(heatMap({ ...TEXT, x: "x", unit: "pages", columns: { first: "0", last: "1" }, rows }));
    expect(Number(svg.attributes.height)).toBeGreaterThan(SHEET.height);
    const lowest = Math.max(
      ...allElements(svg).map(({ attributes }) => Number(attributes.y ?? 0) + Number(attributes.height ?? 0)),
    );
    expect(lowest).toBeLessThanOrEqual(Number(svg.attributes.height));
  });

  test("refuses rows of different lengths, and what is no count", () => {
    const draw = (...values: number[][]) =>
      heatMap({
        ...TEXT,
        x: "x",
        unit: "pages",
        columns: { first: "0", last: "1" },
        rows: values.map((row, index) => ({ name: String(index), values: row })),
      });
    expect(() => draw([1, 2], [1])).toThrow(RangeError);
    expect(() => draw([-1])).toThrow(RangeError);
    expect(() => draw([Number.NaN])).toThrow(RangeError);
    expect(parseXml(draw()).name).toBe("svg");
  });
});
