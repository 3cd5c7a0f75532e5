/** A size, a duration, a rate, a share or a count, as Dirtmap writes them: `4K`, `1.55 s`, `2 min 5 s`, `7 %`, `131 040`. */
const QUANTITY = /(?<!\w)-?\d+(?: \d{3}(?!\d))*(?:\.\d+)?(?: min \d+ s| ?(?:ms|us|s)\b| ?%|[BKMGT](?:\/s)?\b)?/g;
/** What tracking costs: a range, or a figure with its range, or that it is open. */
const VERDICT = /(?:open|#) ?\(# to #\)|# to #/g;

/**
 * The lines of an output without what differs from run to run: quantities, ids and widths of columns; a line like the one
 * before it is one with it.
 * @param free lines that may be there or not
 * @param rowCells of a table's rows, which begin with a device, only so many cells count
 */
export function shapeOf(text: string, { free, rowCells }: { free: readonly RegExp[]; rowCells: number }): string[] {
  const shapes = text
    .split("\n")
    .filter((line) => !free.some((pattern) => pattern.test(line)))
    .map((line) =>
      line
        .replace(/\bmigration [0-9a-f]{8}\b/, "migration ID")
        .replace(/\b\d{4}-\d\d-\d\dT[\d:.]+Z/, "TIME")
        .replace(QUANTITY, "#")
        .replace(VERDICT, "RANGE")
        .replace(/ (yes|no)$/, " YES/NO")
        .replace(/^\w+\d(?: {2,}\S+)+/, (row) => row.split(/ {2,}/).slice(0, rowCells).join(" "))
        .replace(/\s+/g, " ")
        // What a recommendation says of the second best, behind its granule: how far away, and by what.
        .replace(/^(\w+\d \S+ #): .*$/, "$1: DISTANCE")
        .trim(),
    );
  return shapes.filter((shape, index) => shape !== "" && shape !== shapes[index - 1]);
}
