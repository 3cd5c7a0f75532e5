import { InvalidArgumentError, Option } from "commander";
import { explain, UsageError } from "../../../errors.js";
import { suggest } from "../../../nearest.js";
import { parseDuration, writeDuration } from "../../../units.js";

/*
 * How the value of an option is read, and how help names its default.
 */

/** How help names a default, which can be typed as it stands there. */
export function orElse(typed: string): string {
  return ` (default: ${typed})`;
}

/** The same for what a scenario can say. */
export function orScenario(typed: string): string {
  return orElse(`the scenario's, else ${typed}`);
}

/** Makes a parser's UsageError one that commander reports with the option's name. */
export function argument<T>(parse: (text: string) => T): (text: string) => T {
  return (text) => {
    try {
      return parse(text);
    } catch (error) {
      if (error instanceof UsageError) throw new InvalidArgumentError(explain(error));
      throw error;
    }
  };
}

/** A duration within bounds, both inclusive, in milliseconds. */
export function durationWithin({ min, max }: { min: number; max: number }): (text: string) => number {
  return argument((text) => {
    const ms = parseDuration(text);
    if (ms >= min && ms <= max) return ms;
    throw new UsageError(`'${text}' is out of range`, { code: "BAD_OPTION", remedy: `give ${min}ms to ${max}ms` });
  });
}

/** A duration within bounds that has a default, which help shows with its unit. */
export function durationOption(
  flags: string,
  text: string,
  bounds: { min: number; max: number },
  defaultMs: number,
): Option {
  return new Option(flags, text).argParser(durationWithin(bounds)).default(defaultMs, writeDuration(defaultMs));
}

/** A whole number in a range, both ends inclusive. */
export function wholeNumber(min: number, max: number): (text: string) => number {
  return argument((text) => {
    const value = /^\d{1,16}$/.test(text) ? Number(text) : Number.NaN;
    if (value >= min && value <= max) return value;
    const what = Number.isNaN(value) ? "not a whole number" : "out of range";
    throw new UsageError(`'${text}' is ${what}`, { code: "BAD_OPTION", remedy: `give ${min} to ${max}` });
  });
}

/** One of a list of words. */
export function oneOf<Word extends string>(words: readonly Word[], what: string): (text: string) => Word {
  return (text) => {
    const word = words.find((candidate) => candidate === text);
    if (word !== undefined) return word;
    throw new UsageError(`there is no ${what} '${text}'`, { code: "BAD_OPTION", remedy: suggest(text, words) });
  };
}

/** An option whose value is one of a list of words. @param after the end of its help: {@link orElse} */
export function choice<Word extends string>(
  flags: string,
  words: readonly Word[],
  what: string,
  text: string,
  after = "",
): Option {
  return new Option(flags, `${text}: ${words.join(", ")}${after}`).argParser(argument(oneOf(words, what)));
}

/** Any text but none. */
export function nonEmpty(text: string): string {
  if (text !== "") return text;
  throw new UsageError("the value is empty", { code: "BAD_OPTION", remedy: "write DEV=VALUE" });
}

/**
 * `KEY=VALUE`, as often as wanted; the last value of a key wins.
 * @param lacks how an error describes text that is no pair, and its remedy
 */
export function pairs<T>(
  lacks: string,
  parse: (text: string) => T,
): (text: string, before?: Record<string, T>) => Record<string, T> {
  return (text, before = {}) => {
    const at = text.indexOf("=");
    if (at < 1) throw new InvalidArgumentError(`'${text}' ${lacks}`);
    return { ...before, [text.slice(0, at)]: argument(parse)(text.slice(at + 1)) };
  };
}

/** `DEV=VALUE`, as often as wanted; the last one for a device wins. */
export function perDevice<T>(parse: (text: string) => T) {
  return pairs("has no device; write DEV=VALUE", parse);
}
