import { safeLines, safeText } from "../../safe-text.js";
import { type Block, isLeft, type ReportDocument, type TableBlock } from "./document.js";

/**
 * Returns a report as Markdown, with GitHub's tables. Ends with a newline.
 * @param urlOf returns the URL of a figure's SVG, relative to the report, from the figure's name
 */
export function markdownReport({ title, blocks }: ReportDocument, urlOf: (figure: string) => string): string {
  return `${[`# ${plain(title)}`, ...blocks.map((block) => blockMarkdown(block, urlOf))].join("\n\n")}\n`;
}

function blockMarkdown(block: Block, urlOf: (figure: string) => string): string {
  switch (block.kind) {
    case "heading":
      return `## ${plain(block.text)}`;
    case "text":
      return plain(block.text);
    case "warning":
      return `> **Warning:** ${plain(block.text)}`;
    case "list":
      return block.items.map((item) => `- ${plain(item)}`).join("\n");
    case "code":
      return fenced(block.text);
    case "table":
      return tableMarkdown(block);
    case "figure":
      return `![${plain(block.caption)}](${encodeURI(urlOf(block.name))})\n\n_${plain(block.caption)}_`;
  }
}

function tableMarkdown(table: TableBlock): string {
  const { caption, head, rows } = table;
  const row = (cells: readonly string[]) => `| ${head.map((_, column) => plain(cells[column] ?? "")).join(" | ")} |`;
  const rule = `| ${head.map((_, column) => (isLeft(table, column) ? "---" : "---:")).join(" | ")} |`;
  return [`_${plain(caption)}_`, "", row(head), rule, ...rows.map(row)].join("\n");
}

/** A fence longer than any in the text. */
function fenced(text: string): string {
  const longest = Math.max(2, ...[...text.matchAll(/`+/g)].map(([ticks]) => ticks.length));
  const fence = "`".repeat(longest + 1);
  return `${fence}\n${safeLines(text)}\n${fence}`;
}

/** Text that Markdown takes for nothing else: on one line, with what it would read as its own escaped. */
function plain(text: string): string {
  return safeText(text.replace(/\s+/g, " ").trim(), Number.POSITIVE_INFINITY)
    .replace(/[\\`*_[\]<>|~&]/g, "\\$&")
    .replace(/^[-+#=]/, "\\$&")
    .replace(/^(\d+)([.)])(?=\s|$)/, "$1\\$2");
}
