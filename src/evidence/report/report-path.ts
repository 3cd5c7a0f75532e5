import { extname } from "node:path";
import { UsageError } from "../../errors.js";

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
