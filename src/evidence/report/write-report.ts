import { basename, dirname, extname, join } from "node:path";
import { writeOutput } from "../../sys/output-file.js";
import type { ReportDocument } from "./document.js";
import { htmlReport } from "./html.js";
import { markdownReport } from "./markdown.js";
import { reportPath } from "./report-path.js";

/**
 * Writes a report as one HTML file, or as Markdown with a file for each figure beside it (`report.md`, `report-NAME.svg`).
 * @returns the files written
 * @throws UsageError `BAD_OPTION` for another kind of file, `CANNOT_WRITE` if the system refuses
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
