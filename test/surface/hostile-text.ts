import { expect } from "vitest";

/** Clears a screen, turns text round, hides, begins a line of its own, and is no valid UTF-16. */
export const HOSTILE =
  "x\x1b[2J\x1b]0;t\x07\x9b31m\u202ey\u2066\u2028z\u200b\ufeff\r\nFORGED: done\t\x7f\0\ud800<b>&'\"|`";

/** The same as it may stand in a file's name: no slash, no NUL. */
export const HOSTILE_NAME = "x\x1b[2J\x9b31m\u202ey\u2028z\u200b\r\nFORGED: done";

/**
 * The value with {@link HOSTILE} in place of each string, and of each key, with which it is still accepted. At least one must be.
 * @param accepts true for what its reader takes
 */
export function hostile<Value>(value: Value, accepts: (value: unknown) => boolean): Value {
  let current: unknown = structuredClone(value);
  expect(accepts(current), "as it was").toBe(true);
  let replaced = 0;
  for (const path of stringsOf(current)) {
    const changed = withHostile(current, path);
    if (!accepts(changed)) continue;
    current = changed;
    replaced++;
  }
  expect(replaced).toBeGreaterThan(0);
  return current as Value;
}

/** Nothing that a terminal obeys, that hides or turns text round, and no line that is not ours. */
export function expectSafe(text: string, from: string): void {
  const unsafe = /[^\P{C}\n]|[\p{Zl}\p{Zp}]/u.exec(text);
  const near = unsafe === null ? "" : JSON.stringify(text.slice(Math.max(0, unsafe.index - 60), unsafe.index + 20));
  expect(near, `unsafe text in ${from}`).toBe("");
  expect(text, from).not.toMatch(/^FORGED/m);
}

/** Paths to all strings of a JSON value. */
function stringsOf(value: unknown, path: readonly (string | number)[] = []): (readonly (string | number)[])[] {
  if (typeof value === "string") return [path];
  if (Array.isArray(value)) return value.flatMap((each, index) => stringsOf(each, [...path, index]));
  if (typeof value !== "object" || value === null) return [];
  return Object.entries(value).flatMap(([key, each]) => stringsOf(each, [...path, key]));
}

function withHostile(value: unknown, [step, ...rest]: readonly (string | number)[]): unknown {
  if (step === undefined) return HOSTILE;
  if (Array.isArray(value)) return value.map((each, index) => (index === step ? withHostile(each, rest) : each));
  return { ...(value as object), [step]: withHostile((value as Record<string, unknown>)[step], rest) };
}
