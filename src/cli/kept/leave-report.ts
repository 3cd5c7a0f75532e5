import { explain } from "../../errors.js";
import type { ReportDocument } from "../../evidence/report/document.js";
import { writeReport } from "../../evidence/report/write-report.js";

/** Writes the report of something that is over, and says so. Where it can't be written, that is a note: what is over stays so. */
export function leaveReport(path: string, document: ReportDocument, note: (text: string) => void): void {
  try {
    note(`report: ${writeReport(path, document).join(", ")}`);
  } catch (error) {
    note(`no report: ${explain(error)}`);
  }
}
