import { readdirSync, readFileSync } from "node:fs";
import { dirname, join, normalize } from "node:path";
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
  return [...proseOf(file).matchAll(/`((?:npx )?dirtmap [^`]+)`/g)].map(([, command]) => command.replace(/\s+/g, " "));
}

/** A link to a file of the project. */
export interface Link {
  /** Relative to the project's folder. */
  readonly path: string;
  /** The anchor of a heading; undefined: the link leads to the file as a whole. */
  readonly heading: string | undefined;
}

/** The links of a document that don't leave the project. */
export function linksOf(file: string): Link[] {
  return [...proseOf(file).matchAll(/\]\((?!https?:)([^)#]*)(?:#([^)]*))?\)/g)].map(([, path, heading]) => ({
    path: path === "" ? file : normalize(join(dirname(file), path)),
    heading,
  }));
}

/** The anchors that GitHub gives to a document's headings. */
export function anchorsOf(file: string): string[] {
  return [...proseOf(file).matchAll(/^#+ (.+)$/gm)].map(([, heading]) =>
    heading
      .toLowerCase()
      .replace(/[^\w\- ]/g, "")
      .replaceAll(" ", "-"),
  );
}

/** A document without its fenced blocks. */
function proseOf(file: string): string {
  return readFileSync(join(ROOT, file), "utf8").replace(/^```[\s\S]*?^```$/gm, "");
}
