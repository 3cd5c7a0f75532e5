/** How a column's cells stand; text to the left, quantities to the right. */
export type Align = "left" | "right";

/**
 * Lines of columns two spaces apart, each as wide as its widest cell, without blanks at the line's end. Cells are plain
 * text on one line. A last row shorter than the others leaves its cells empty.
 */
export function table(rows: readonly (readonly string[])[], align: readonly Align[] = []): string[] {
  const columns = Math.max(0, ...rows.map((row) => row.length));
  const widths = Array.from({ length: columns }, (_, column) =>
    Math.max(...rows.map((row) => (row[column] ?? "").length)),
  );
  return rows.map((row) =>
    widths
      .map((width, column) => {
        const cell = row[column] ?? "";
        return align[column] === "right" ? cell.padStart(width) : cell.padEnd(width);
      })
      .join("  ")
      .trimEnd(),
  );
}
