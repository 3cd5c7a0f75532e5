import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";

/** The project's folder. */
export const ROOT = fileURLToPath(new URL("../../..", import.meta.url));

/** A fenced block of a document. */
export interface DocBlock {
  /** Relative to the project's folder. */
  readonly file: string;
  /** Of its first line of text, from 1. */
  readonly line: number;
  /** What stands behind the fence; empty: nothing. */
  readonly language: string;
  readonly text: string;
}

/** The documents whose blocks are tested: the README, and all of docs/. */
export function documents(): string[] {
  const docs = readdirSync(join(ROOT, "docs")).filter((name) => name.endsWith(".md"));
  return ["README.md", ...docs.map((name) => `docs/${name}`).sort()];
}

/** The fenced blocks of a document, in order. */
export function blocksOf(file: string): DocBlock[] {
  const text = readFileSync(join(ROOT, file), "utf8");
  return [...text.matchAll(/^```(.*)\n([\s\S]*?)^```$/gm)].map(([, language, block], index, all) => ({
    file,
    line: text.slice(0, all[index].index).split("\n").length + 1,
    language: language.trim(),
    text: block,
  }));
}

/** The commands of a block of shell, as a reader would type them: without comments, continued lines joined. */
export function commandsOf(text: string): string[] {
  return text
    .replace(/\\\n\s*/g, " ")
    .split("\n")
    .map((line) => line.replace(/(^|\s+)# .*$/, "").trim())
    .filter((line) => line !== "");
}

/** Commands of Dirtmap's in running text: `dirtmap recommend --check` in backquotes. */
export function commandsInText(file: string): string[] {
  const prose = readFileSync(join(ROOT, file), "utf8").replace(/^```[\s\S]*?^```$/gm, "");
  return [...prose.matchAll(/`((?:npx )?dirtmap [^`]+)`/g)].map(([, command]) => command.replace(/\s+/g, " "));
}
