import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import fc from "fast-check";
import { afterAll, describe, expect, test } from "vitest";
import { barChart } from "../plot/bar-chart.js";
import type { Block, ReportDocument } from "./document.js";
import { htmlReport } from "./html.js";
import { markdownReport } from "./markdown.js";
import { reportPath } from "./report-path.js";
import { writeReport } from "./write-report.js";

const folder = mkdtempSync(join(tmpdir(), "dirtmap-report-"));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

/** A report in which every text is the given one. */
function reportOf(text: string): ReportDocument {
  const svg = barChart({
    title: text,
    description: text,
    x: text,
    y: { label: text },
    categories: [text],
    series: [{ name: text, bars: [{ value: 1 }] }],
  });
  const blocks: Block[] = [
    { kind: "heading", text },
    { kind: "text", text },
    { kind: "warning", text },
    { kind: "list", items: [text] },
    { kind: "code", text: `npx dirtmap\n${text}` },
    { kind: "table", caption: text, head: [text, "pages"], rows: [[text, "1"], [text]] },
    { kind: "figure", name: "one", svg, caption: text },
  ];
  return { title: text, blocks };
}

const HOSTILE = [
  "<script>alert(1)</script>",
  '"><img src=x onerror=alert(1)>',
  "</style></svg></pre><iframe src='//example.com'>",
  "&lt;script&gt;",
  "a|b\n|---|\n# c `d` [e](http://example.com) *f* _g_ ~h~",
  "]]>--><!--",
];

describe("a report as HTML", () => {
  test.each(HOSTILE)("shows %j as text", (text) => {
    const html = htmlReport(reportOf(text));
    const tags = [...html.matchAll(/<\/?([a-z0-9]+)/gi)].map(([, name]) => name);
    for (const tag of ["script", "img", "iframe", "object", "link", "base", "form"]) expect(tags).not.toContain(tag);
    expect(html.match(/<\/style>/g)).toHaveLength(2);
    expect(html).not.toMatch(/<[^>]*\son[a-z]+=/);
  });

  test("refers to nothing outside, and says that nothing may be loaded", () => {
    const html = htmlReport(reportOf("plain"));
    expect(html.replaceAll("http://www.w3.org/2000/svg", "")).not.toMatch(/https?:|src=|href=|url\(|@import/);
    expect(html).toContain(`<meta http-equiv="Content-Security-Policy" content="default-src 'none'`);
  });

  test("has each text as often as it was given, whatever it consists of", () => {
    fc.assert(
      fc.property(fc.stringMatching(/^[<>&"'a-z]{1,12}$/), (text) => {
        const tags = (html: string) => [...html.matchAll(/<[^>]*>/g)].length;
        expect(tags(htmlReport(reportOf(text)))).toBe(tags(htmlReport(reportOf("x"))));
      }),
    );
  });

  test("fills up rows that are shorter than the head", () => {
    const html = htmlReport(reportOf("x"));
    expect(html.match(/<td/g)).toHaveLength(4);
  });
});

describe("a report as Markdown", () => {
  const report = (text: string) => markdownReport(reportOf(text), (figure) => `figures/${figure}.svg`);

  test.each(HOSTILE)("keeps %j in its cell, on its line", (text) => {
    const lines = report(text).split("\n");
    const cells = (line: string) => line.match(/(?<!\\)\|/g)?.length;
    const start = lines.findIndex((line) => /^\| -/.test(line));
    expect(lines.slice(start - 1, start + 3).map(cells)).toEqual([3, 3, 3, 3]);
    const outsideOfCode = report(text).replace(/^(`{3,})[\s\S]*?^\1$/gm, "");
    expect(outsideOfCode).not.toMatch(/(?<!\\)<[a-z]/i);
    expect(outsideOfCode.match(/^# /gm)).toHaveLength(1);
  });

  test("names figures by where they are", () => {
    expect(report("x")).toContain("![x](figures/one.svg)");
  });

  test("leaves quantities as they are", () => {
    const document: ReportDocument = {
      title: "t",
      blocks: [{ kind: "table", caption: "c", head: ["a", "b"], rows: [["3.11 s", "-1"]] }],
    };
    expect(markdownReport(document, String)).toContain("| 3.11 s | \\-1 |");
  });

  test("fences code that has fences of its own", () => {
    const document: ReportDocument = { title: "t", blocks: [{ kind: "code", text: "```\nx" }] };
    expect(markdownReport(document, String)).toContain("````\n```\nx\n````");
  });
});

describe("a report's file", () => {
  test("is one in HTML, and has its figures beside it in Markdown", () => {
    const html = join(folder, "new", "r.html");
    expect(writeReport(html, reportOf("x"))).toEqual([html]);
    expect(readFileSync(html, "utf8")).toMatch(/^<!DOCTYPE html>/);

    const markdown = join(folder, "r.md");
    const figure = join(folder, "r-one.svg");
    expect(writeReport(markdown, reportOf("x"))).toEqual([markdown, figure]);
    expect(readFileSync(markdown, "utf8")).toContain("(r-one.svg)");
    expect(readFileSync(figure, "utf8")).toMatch(/^<svg /);
  });

  test("of another kind is refused before anything is written", () => {
    const path = join(folder, "r.pdf");
    expect(() => reportPath(path)).toThrow(expect.objectContaining({ code: "BAD_OPTION" }));
    expect(() => writeReport(path, reportOf("x"))).toThrow(expect.objectContaining({ code: "BAD_OPTION" }));
    expect(existsSync(path)).toBe(false);
  });

  test("that can't be written is refused in one line", () => {
    const file = join(folder, "file");
    writeFileSync(file, "");
    const write = () => writeReport(join(file, "r.html"), reportOf("x"));
    expect(write).toThrow(expect.objectContaining({ code: "CANNOT_WRITE" }));
  });
});
