import { fileURLToPath } from "node:url";
import { scenarioReference } from "./reference.js";

/** The document that the reference is part of. */
export const SCENARIOS_DOC = fileURLToPath(new URL("../../../docs/scenarios.md", import.meta.url));

const BEGIN = "<!-- The rest is made from the schema by `npm run docs:scenarios`. -->\n";

/** The document with today's reference. @throws Error if it has lost the mark before it */
export function withReference(text: string): string {
  const begin = text.indexOf(BEGIN);
  if (begin === -1) throw new Error(`docs/scenarios.md lacks the line ${BEGIN}`);
  return `${text.slice(0, begin + BEGIN.length)}\n${scenarioReference()}\n`;
}
