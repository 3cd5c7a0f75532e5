import { type Block, isLeft, type TableBlock } from "../../evidence/report/document.js";
import { table } from "../../observe/table.js";

/*
 * A table is made once; a terminal and a report show it.
 */

/** A table without its caption. */
export type Cells = Omit<TableBlock, "kind" | "caption">;

/** The lines of a table on a terminal. */
export function tableLines(cells: Cells): string[] {
  const { head, rows } = cells;
  return table(
    [head, ...rows],
    head.map((_, column) => (isLeft(cells, column) ? "left" : "right")),
  );
}

/** The table in a report. */
export function tableBlock(caption: string, cells: Cells): Block {
  return { kind: "table", caption, ...cells };
}
