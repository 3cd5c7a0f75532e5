import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { safeJson, safeLines, safeStrings, safeText } from "./safe-text.js";

/** What a terminal obeys, or a reader does not see. */
const HOSTILE: readonly (readonly [what: string, text: string, safe: string])[] = [
  ["an escape sequence", "\x1b[2Jgone", "\\u{1b}[2Jgone"],
  ["C1's one-character CSI", "\x9b31mred", "\\u{9b}31mred"],
  ["a line break, which would forge a line", "a\ndirtmap: done", "a\\u{a}dirtmap: done"],
  ["a carriage return and a tab", "a\r\tb", "a\\u{d}\\u{9}b"],
  ["NUL, BEL, backspace and DEL", "\0\x07\b\x7f", "\\u{0}\\u{7}\\u{8}\\u{7f}"],
  ["bidirectional overrides and isolates", "a\u202eb\u2066c", "a\\u{202e}b\\u{2066}c"],
  ["line and paragraph separators", "a\u2028b\u2029c", "a\\u{2028}b\\u{2029}c"],
  ["zero-width characters, a byte order mark, a soft hyphen", "a\u200bb\ufeffc\u00ad", "a\\u{200b}b\\u{feff}c\\u{ad}"],
  ["a variation selector, a tag, a filler", "a\ufe0f\u{e0041}\u3164", "a\\u{fe0f}\\u{e0041}\\u{3164}"],
  ["halves of surrogate pairs", "a\ud83db\ude00", "a\\u{d83d}b\\u{de00}"],
  ["noncharacters and private use", "\ufffe\u{1ffff}\ue000", "\\u{fffe}\\u{1ffff}\\u{e000}"],
];

describe("safeText", () => {
  it.each(HOSTILE)("shows %s as numbers", (_, text, safe) => {
    expect(safeText(text)).toBe(safe);
    expect(safeText(safe), "twice is as good as once").toBe(safe);
  });

  it("leaves what people write as it is, in any script", () => {
    for (const text of [
      "vf0: 4K, 7 %",
      "Größe · naïve …",
      "Ελληνικά",
      "デバイス",
      "עברית",
      "😀",
      "█░ ✓",
      "C:\\u{1b}",
    ]) {
      expect(safeText(text)).toBe(text);
    }
  });

  it("is bounded, whatever comes", () => {
    expect(safeText("x".repeat(5000))).toBe(`${"x".repeat(4095)}…`);
    expect(safeText("device", 4)).toBe("dev…");
  });

  it("never lets a control character or a line break through", () => {
    fc.assert(
      fc.property(fc.string({ unit: "binary", maxLength: 200 }), (text) => {
        expect(safeText(text)).not.toMatch(/[\p{Cc}\p{Cs}\u200b-\u200f\u2028-\u202e\u2066-\u2069\ufeff]/u);
      }),
    );
  });
});

describe("safeLines", () => {
  it("keeps line breaks, and nothing else that is unsafe", () => {
    expect(safeLines("a\nb\x1b[1A\r\n")).toBe("a\nb\\u{1b}[1A\\u{d}\n");
  });
});

describe("safeStrings", () => {
  it("makes keys and values safe however deep, and leaves numbers, null, bigints and other objects alone", () => {
    const at = new Date(0);
    const value = { "k\n": [{ name: "\x1b]0;x\x07" }, 1, null, 2n, true, at], map: new Map([["\r", "\u202e"]]) };
    expect(safeStrings(value)).toEqual({
      "k\\u{a}": [{ name: "\\u{1b}]0;x\\u{7}" }, 1, null, 2n, true, at],
      map: new Map([["\\u{d}", "\\u{202e}"]]),
    });
  });
});

describe("safeJson", () => {
  it("is the same value, in characters that a terminal shows", () => {
    fc.assert(
      fc.property(fc.string({ unit: "binary" }), (text) => {
        const json = safeJson({ text });
        expect(safeText(json, Number.POSITIVE_INFINITY)).toBe(json);
        expect(JSON.parse(json)).toEqual({ text });
      }),
    );
  });
});
