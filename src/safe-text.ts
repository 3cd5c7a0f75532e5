/*
 * Text that comes from elsewhere (a peer, a file, a device, the environment) must not steer a terminal, reorder a line, or
 * pretend to be another line. This is the one place that makes it harmless; nothing foreign is shown without it.
 */

/**
 * What a terminal obeys or a reader can't see: control characters (C0, DEL, C1), format characters (bidirectional overrides,
 * zero-width ones, tags), line and paragraph separators, halves of surrogate pairs, private use, noncharacters.
 */
const UNSAFE = /[\p{Cc}\p{Cf}\p{Cs}\p{Co}\p{Zl}\p{Zp}\p{Default_Ignorable_Code_Point}\p{Noncharacter_Code_Point}]/gu;

/** Longer than any name or message of Dirtmap's own; a peer's message may say that it is longer still. */
const MAX_CHARACTERS = 4096;

/**
 * The text on one line, each unsafe character as its number: `\u{1b}` for ESC. Longer text is cut, and ends with `…`.
 * Text that is safe and short enough comes back as it is, so that it may be made safe twice.
 */
export function safeText(text: string, maxCharacters = MAX_CHARACTERS): string {
  const short = text.length <= maxCharacters ? text : `${text.slice(0, maxCharacters - 1)}…`;
  return short.replace(UNSAFE, named);
}

/** Text of several lines, each of them safe. For text of Dirtmap's own making: a line break in foreign text is not safe. */
export function safeLines(text: string): string {
  return text.replace(UNSAFE, (character) => (character === "\n" ? character : named(character)));
}

/**
 * A copy of a value in which every string, and every key, is {@link safeText}. Numbers and the like stay; so do objects
 * that are neither plain, nor arrays, maps or sets.
 */
export function safeStrings<Value>(value: Value): Value {
  return copied(value) as Value;
}

/**
 * JSON on one line, with unsafe characters as escapes of JSON's own: equal in value, and harmless on a terminal.
 * @param replacer as JSON.stringify takes it
 */
export function safeJson(value: unknown, replacer?: (key: string, value: unknown) => unknown): string {
  return JSON.stringify(value, replacer).replace(UNSAFE, codeUnits);
}

function copied(value: unknown): unknown {
  if (typeof value === "string") return safeText(value);
  if (typeof value !== "object" || value === null) return value;
  if (Array.isArray(value)) return value.map(copied);
  if (value instanceof Map) return new Map([...value].map(([key, each]) => [copied(key), copied(each)]));
  if (value instanceof Set) return new Set([...value].map(copied));
  const prototype: unknown = Object.getPrototypeOf(value);
  if (prototype !== Object.prototype && prototype !== null) return value;
  return Object.fromEntries(Object.entries(value).map(([key, each]) => [safeText(key), copied(each)]));
}

function named(character: string): string {
  return `\\u{${character.codePointAt(0)?.toString(16)}}`;
}

function codeUnits(character: string): string {
  return Array.from(
    { length: character.length },
    (_, at) => `\\u${character.charCodeAt(at).toString(16).padStart(4, "0")}`,
  ).join("");
}
