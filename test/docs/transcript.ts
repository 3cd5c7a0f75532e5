import { expect } from "vitest";
import { FREE_LINES, MEASURES, SAID_SINCE_SUBSTITUTED } from "./declared.js";
import { shapeOf } from "./shape.js";

/** A command of a console block, and the output that the document shows below it. */
export interface Transcript {
  readonly command: string;
  readonly output: string;
}

/** The transcripts of a console block, in order. */
export function transcriptsOf(text: string): Transcript[] {
  return text
    .split(/^\$ /m)
    .slice(1)
    .map((part) => {
      const [command] = part.split("\n", 1);
      return { command, output: part.slice(command.length) };
    });
}

/**
 * Checks that what a command prints today has the form of what the document shows. A line `…` of the document stands for any
 * number of lines.
 */
export function expectForm(shown: string, { command, output }: Transcript): void {
  const look = { free: FREE_LINES, rowCells: MEASURES.test(command) ? 2 : Number.POSITIVE_INFINITY };
  const written = shapeOf(output.replace(SAID_SINCE_SUBSTITUTED, ""), look);
  const lines = shapeOf(shown.replace(SAID_SINCE_SUBSTITUTED, ""), look);
  if (!written.includes("…")) expect(lines).toEqual(written);
  let from = 0;
  for (const line of written.filter((each) => each !== "…")) {
    const found = lines.indexOf(line, from);
    expect(found, `${line}\nis not in, or not in this order in\n${lines.join("\n")}`).toBeGreaterThanOrEqual(0);
    from = found;
  }
}
