import { basename, dirname, extname, join } from "node:path";
import { UsageError } from "../../errors.js";
import { writeOutput } from "../../sys/output-file.js";
import type { ReportDocument } from "./document.js";
import { htmlReport } from "./html.js";
import { markdownReport } from "./markdown.js";

/** The forms that a report can have, by the end of its file's name. */
const FORMS = [".md", ".html"];

/**
 * Checks the name of a report's file, before anything is measured for it.
 * @throws UsageError `BAD_OPTION`
 */
export function reportPath(path: string): string {
  if (FORMS.includes(extname(path).toLowerCase())) return path;
  throw new UsageError(`'${path}' is neither Markdown nor HTML`, {
    code: "BAD_OPTION",
    remedy: `end its name in ${FORMS.join(" or ")}`,
  });
}

/**
 * Writes a report: one HTML file, or Markdown with a file for each figure beside it (`report.md`, `report-NAME.svg`).
 * @returns the files written
 * @throws UsageError `BAD_OPTION` for another kind of file, `CANNOT_WRITE` where the system refuses
 */
export function writeReport(path: string, document: ReportDocument): string[] {
  reportPath(path);
  if (extname(path).toLowerCase() === ".html") return [writeOutput(path, htmlReport(document))];
  const stem = basename(path, extname(path));
  const figureFile = (name: string) => `${stem}-${name}.svg`;
  const figures = document.blocks.flatMap((block) =>
    block.kind === "figure" ? [writeOutput(join(dirname(path), figureFile(block.name)), `${block.svg}\n`)] : [],
  );
  return [writeOutput(path, markdownReport(document, figureFile)), ...figures];
}
